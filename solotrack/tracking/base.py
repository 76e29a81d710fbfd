"""The part all online trackers share: choose a frame's detections, link them to the remembered tracks, give IDs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.tracking.base_tracker import TRACKER_HEADS_REGISTRY, BaseTracker

from solotrack.ops.masks import mask_iou

from .assignment import DROPPED, NEW
from .memory import TrackMemory

__all__ = ["OnlineTracker", "build_tracker", "check_choice", "select_instances"]


def build_tracker(cfg: CfgNode, class_ids: Sequence[int] | None = None) -> BaseTracker:
    """The tracker that ``cfg.TRACKER_HEADS`` describes: an :class:`OnlineTracker` or an ``OfflineTracker``.

    Args:
        cfg: a SOLO-Track config.
        class_ids: contiguous classes to track; None tracks all.
    """
    return TRACKER_HEADS_REGISTRY.get(cfg.TRACKER_HEADS.TRACKER_NAME)(cfg, class_ids=class_ids)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """``value``, if it is one of ``allowed``; else a ValueError that lists them."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}.")
    return value


def select_instances(
    instances: Instances,
    score_thresh: float = 0.0,
    max_per_frame: int | None = None,
    class_ids: Sequence[int] | None = None,
    nms_thresh: float = 1.0,
) -> tuple[Instances, np.ndarray]:
    """The detections of a frame that a tracker is to see, by score descending: METHOD 5.1.

    The mask NMS looks at all detections that pass the score and the class filter, so that a duplicate does not take the place of
    another object among the ``max_per_frame``. It ignores classes.

    Args:
        instances: n detections with ``scores``, ``pred_classes`` and, for the NMS, ``pred_masks``.
        score_thresh: the score a detection needs.
        max_per_frame: the number kept; None for all.
        class_ids: classes kept; None for all.
        nms_thresh: mask IoU with a better detection above which a detection goes; 1 = no NMS.

    Returns:
        the kept detections and their scores, (n,) float32 on the host.
    """
    device = instances.scores.device
    scores, classes = torch.stack((instances.scores.float(), instances.pred_classes.float())).cpu().numpy()  # one transfer
    keep = scores >= score_thresh
    if class_ids is not None:
        keep &= np.isin(classes, class_ids)
    order = np.argsort(-scores, kind="stable")
    order = order[keep[order]]
    if nms_thresh < 1 and len(order) > 1:
        order = order[_mask_nms(instances.pred_masks[torch.from_numpy(order).to(device)], nms_thresh)]
    order = order[:max_per_frame]
    return instances[torch.from_numpy(order).to(device)], scores[order]


def _mask_nms(masks: torch.Tensor, thresh: float) -> np.ndarray:
    """(n,) bool: masks (n, H, W) left when each kept one removes those after it with an IoU above ``thresh``."""
    overlaps = (mask_iou(masks, masks) > thresh).cpu().numpy()
    keep = np.ones(len(masks), dtype=bool)
    for i in range(len(masks)):
        if keep[i]:
            keep[i + 1 :] &= ~overlaps[i, i + 1 :]
    return keep


class OnlineTracker(BaseTracker):
    """Base of the trackers that see one frame at a time.

    A subclass says what a track remembers of a detection (:meth:`_observe`), how detections are matched with the memory (:meth:`_match`)
    and, unless the newest detection simply replaces the older one, how a track's memory is renewed (:meth:`_renew`).

    IDs count from 0 in the order in which tracks appear. Frames without detections, first frames and frames of changing size are all
    fine (positions are carried over to the new size, see :meth:`TrackMemory.fit`).
    """

    @configurable
    def __init__(
        self,
        *,
        score_thresh: float = 0.05,
        max_per_frame: int = 10,
        pre_nms_thresh: float = 1.0,
        class_ids: Sequence[int] | None = None,
        init_score: float = 0.0,
        retain: int = 0,
        assignment: str = "greedy",
    ) -> None:
        """
        Args:
            score_thresh: score a detection needs to be handed to the tracker.
            max_per_frame: detections kept in a frame.
            pre_nms_thresh: class-agnostic mask IoU above which the weaker detection goes; 1 = no NMS.
            class_ids: contiguous classes tracked; None for all.
            init_score: score a detection needs to start a track.
            retain: a track can be found again up to this many frames after its last detection (1: in the next frame only); 0 = always.
            assignment: "greedy" or "hungarian".
        """
        super().__init__()
        self._score_thresh = score_thresh
        self._max_per_frame = max_per_frame
        self._pre_nms_thresh = pre_nms_thresh
        self._class_ids = None if class_ids is None else list(class_ids)
        self._init_score = init_score
        self._retain = retain
        self._assignment = check_choice("assignment", assignment, ("greedy", "hungarian"))
        self._memory = TrackMemory()
        self.reset()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        trk = cfg.TRACKER_HEADS
        return {
            "score_thresh": trk.SCORE_THRESH,
            "max_per_frame": trk.MAX_PER_FRAME,
            "pre_nms_thresh": trk.PRE_NMS_THRESH,
            "init_score": trk.INIT_SCORE,
            "retain": trk.RETAIN,
            "assignment": trk.ASSIGN,
        }

    def reset(self) -> None:
        """Forget everything; call it before a video's first frame."""
        self._memory.reset()
        self._id_count = 0
        self._frame = -1

    @torch.no_grad()
    def update(self, predictions: Instances) -> Instances:
        """Give the detections of the next frame their IDs.

        Args:
            predictions: n detections with ``pred_masks`` (n, H, W) bool, ``pred_boxes``, ``scores`` (n,) and ``pred_classes`` (n,); the
                EmbeddingTracker also needs ``embeddings`` (n, D). Not changed.

        Returns:
            the detections kept (:func:`select_instances`), by score descending, with ``ID`` (n,) int64: the track, or -1 for none.
        """
        instances, scores = select_instances(predictions, self._score_thresh, self._max_per_frame, self._class_ids, self._pre_nms_thresh)
        memory = self._memory
        self._frame += 1
        memory.expire(self._frame, self._retain)
        memory.fit(tuple(instances.image_size))
        ids = np.full(len(instances), -1, dtype=np.int64)
        if len(instances):
            seen = self._observe(instances)
            match = self._match(instances, seen) if len(memory) else np.full(len(instances), NEW)
            match[(match == NEW) & (scores < self._init_score)] = DROPPED

            found = np.flatnonzero(match >= 0)
            rows = match[found]
            ids[found] = memory.ids[rows]
            memory.write(rows, self._frame, self._renew(rows, _take(seen, found)) if len(found) else {})

            new = np.flatnonzero(match == NEW)
            ids[new] = self._id_count + np.arange(len(new))
            self._id_count += len(new)
            memory.append(ids[new], self._frame, _take(seen, new))
        instances.ID = torch.from_numpy(ids).to(instances.scores.device)
        return instances

    def _observe(self, instances: Instances) -> dict[str, torch.Tensor]:
        """What a track remembers of its detection: columns of the memory, (n, ...) each."""
        raise NotImplementedError

    def _match(self, instances: Instances, seen: Mapping[str, torch.Tensor]) -> np.ndarray:
        """(n,) int64 for n > 0 detections and K > 0 tracks: the row of the memory, NEW or DROPPED."""
        raise NotImplementedError

    def _renew(self, rows: np.ndarray, seen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The columns to write when the tracks in ``rows`` (m,) get the observations ``seen`` (m, ...). A track's class stays that of
        its first detection."""
        return {name: values for name, values in seen.items() if name != "classes"}


def _take(columns: Mapping[str, torch.Tensor], index: np.ndarray) -> dict[str, torch.Tensor]:
    """Copies of the rows ``index`` (m,) of every column."""
    index = torch.from_numpy(index).to(next(iter(columns.values())).device)
    return {name: values[index] for name, values in columns.items()}
