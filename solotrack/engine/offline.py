"""Offline trackers in streaming inference: a video's detections wait for its end as run-length codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Instances

from ..ops.rle import encode_masks
from ..tracking.finalize import TrackRecorder
from ..tracking.offline import OfflineTracker

__all__ = ["PendingVideo"]


class PendingVideo:
    """The detections of one video on their way through an offline tracker, none of them with its mask.

    Args:
        tracker: without any frame yet.
    """

    def __init__(self, tracker: OfflineTracker) -> None:
        self._tracker = tracker
        self._frames: list[tuple[int, list[dict], Instances]] = []  # index, masks as RLE, what else is kept

    def add(self, frame_index: int, instances: Instances) -> None:
        """Hand over the detections of the next frame.

        Args:
            frame_index: position in the video, from 0.
            instances: n detections with ``pred_masks`` (n, H, W) bool, ``pred_boxes``, ``scores`` and ``pred_classes`` (n,).
        """
        kept = self._tracker.add(instances)
        light = Instances(kept.image_size, **{name: kept.get(name) for name in ("pred_boxes", "scores", "pred_classes")})
        self._frames.append((frame_index, encode_masks(kept.pred_masks), light.to("cpu")))

    def record(self, recorder: TrackRecorder) -> None:
        """Link the video and note down its tracks."""
        for ids, (frame_index, rles, light) in zip(self._tracker.link(), self._frames, strict=True):
            recorder.add(frame_index, ids, rles, light.scores, light.pred_classes)

    def frames(self) -> Iterator[Instances]:
        """Link the video; then each frame's detections on the host with ``ID``, their masks decoded again."""
        for ids, (_, rles, light) in zip(self._tracker.link(), self._frames, strict=True):
            masks = np.zeros((0, *light.image_size), np.uint8)
            if rles:
                masks = np.ascontiguousarray(mask_util.decode(rles).transpose(2, 0, 1))
            fields = light.get_fields() | {"pred_masks": torch.from_numpy(masks).view(torch.bool), "ID": torch.from_numpy(ids)}
            yield Instances(light.image_size, **fields)
