"""Tracks by their boxes: where the truth is boxes, masks are scored by theirs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from pycocotools import mask as coco_mask

from solotrack.evaluation.ytvis_format import GroundTruth, Track, YTVISFormatError
from solotrack.ops.rle import has_negative_runs

__all__ = ["boxes_by_frame", "with_box_masks", "with_box_truth"]


def boxes_by_frame(track: Track) -> dict[int, np.ndarray]:
    """Frame -> tight box (4,) of the track's mask, XYXY pixels with exclusive right and bottom; frames without a pixel are left out.

    Raises:
        YTVISFormatError: a mask has runs that make no mask.
    """
    frames = np.flatnonzero(track.areas).tolist()
    for frame in frames:
        if has_negative_runs(track.rles[frame]["counts"]):
            raise YTVISFormatError(f"{track.name}: segmentations[{frame}]: broken RLE: its counts hold a negative run")
    if not frames:
        return {}
    boxes = coco_mask.toBbox([track.rles[frame] for frame in frames])  # (n, 4) XYWH
    boxes[:, 2:] += boxes[:, :2]
    return dict(zip(frames, boxes, strict=True))


def with_box_masks(tracks: Iterable[Track]) -> list[Track]:
    """The same tracks with each mask replaced by its filled box; ``areas`` and ``mean_area`` become those of the boxes.

    Raises:
        YTVISFormatError: a mask has runs that make no mask.
    """
    return [_filled(track) for track in tracks]


def with_box_truth(truth: GroundTruth) -> GroundTruth:
    """A ground truth whose tracks went through :func:`with_box_masks`."""
    return replace(truth, tracks=with_box_masks(truth.tracks))


def _filled(track: Track) -> Track:
    rles: list[dict | None] = [None] * len(track.rles)
    areas = np.zeros(len(track.areas), np.int64)
    for frame, (x1, y1, x2, y2) in boxes_by_frame(track).items():
        rles[frame] = coco_mask.frPyObjects(np.array([[x1, y1, x2 - x1, y2 - y1]]), *track.rles[frame]["size"])[0]
        areas[frame] = int((x2 - x1) * (y2 - y1))
    shown = areas[areas > 0]
    return replace(track, rles=rles, areas=areas, mean_area=float(shown.mean()) if len(shown) else 0.0)
