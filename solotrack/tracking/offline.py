"""The part all offline trackers share: gather the detections of a whole video, then say which belong together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.tracking.base_tracker import BaseTracker

from solotrack.config import ConfigError

from .base import select_instances

__all__ = ["OfflineTracker"]


class OfflineTracker(BaseTracker):
    """Base of the trackers that need a video's last frame before they link its first.

    Use: :meth:`reset`, :meth:`add` for every frame in order, :meth:`link`. Of a detection they keep what their links depend on, never its
    mask, so that memory grows by some numbers a detection.
    """

    @configurable
    def __init__(
        self,
        *,
        score_thresh: float = 0.05,
        max_per_frame: int = 10,
        pre_nms_thresh: float = 1.0,
        class_ids: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            score_thresh, max_per_frame, pre_nms_thresh, class_ids: as of :class:`~solotrack.tracking.base.OnlineTracker`.
        """
        super().__init__()
        self._score_thresh = score_thresh
        self._max_per_frame = max_per_frame
        self._pre_nms_thresh = pre_nms_thresh
        self._class_ids = None if class_ids is None else list(class_ids)
        self.reset()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        trk = cfg.TRACKER_HEADS
        return {"score_thresh": trk.SCORE_THRESH, "max_per_frame": trk.MAX_PER_FRAME, "pre_nms_thresh": trk.PRE_NMS_THRESH}

    def reset(self) -> None:
        """Forget everything; call it before a video's first frame."""
        raise NotImplementedError

    def add(self, predictions: Instances) -> Instances:
        """Take the detections of the next frame.

        Args:
            predictions: n detections as an online tracker takes them. Not changed.

        Returns:
            those kept (:func:`~solotrack.tracking.base.select_instances`), by score descending, without ``ID``.
        """
        instances, scores = select_instances(predictions, self._score_thresh, self._max_per_frame, self._class_ids, self._pre_nms_thresh)
        self._remember(instances, scores)
        return instances

    def _remember(self, instances: Instances, scores: np.ndarray) -> None:
        """Note down a frame's kept detections; ``scores`` (n,) are theirs on the host."""
        raise NotImplementedError

    def link(self) -> list[np.ndarray]:
        """For each frame added, the tracks of its kept detections, (n,) int64: IDs from 0, or -1 for none."""
        raise NotImplementedError

    def update(self, predictions: Instances) -> Instances:
        """
        Raises:
            ConfigError: always. What belongs together is known at a video's end.
        """
        raise ConfigError(
            f"TRACKER_HEADS.TRACKER_NAME {type(self).__name__} is an offline tracker: it links whole videos and cannot follow a stream "
            "frame by frame. Track a video (VideoPredictor.track, tools/track_video.py), or choose an online one such as IoUTrackerPlus."
        )
