"""How hard a labelled video set is to track, measured on its ground truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

__all__ = ["video_difficulty"]

_OCCLUDED = 0.25  # hidden share of an object from which a frame counts as an occlusion


def video_difficulty(annotations: Sequence[dict[str, Any]]) -> dict[str, float | int]:
    """Measure the annotations of a video set (YouTube-VIS records with compressed RLEs).

    A link is an object seen in two consecutive frames. Each linker pairs the objects of the two frames greedily, best pair first, one to
    one, within a category; its accuracy is the share of links it finds.

    Args:
        annotations: YouTube-VIS records; the optional "occlusions" lists the hidden share in each frame, None where the object is absent.

    Returns:
        tracks; links; nearest_centre_accuracy (distance between the masks' centres); iou_accuracy (mask IoU, only where the masks
        overlap); new_objects (first seen after the first frame); re_entries (gaps inside tracks); occlusions (frames of objects hidden
        by a quarter or more); mean_length (frames seen per track).
    """
    videos = defaultdict(list)
    for annotation in annotations:
        videos[annotation["video_id"]].append(annotation)
    links, nearest, overlap = (sum(counts) for counts in zip(*map(_count_links, videos.values()), strict=True)) if videos else (0, 0, 0)
    seen = [np.array([segment is not None for segment in annotation["segmentations"]]) for annotation in annotations]
    hidden = [share for annotation in annotations for share in annotation.get("occlusions", ()) if share is not None]
    return {
        "tracks": len(annotations),
        "links": links,
        "nearest_centre_accuracy": round(nearest / max(links, 1), 4),
        "iou_accuracy": round(overlap / max(links, 1), 4),
        "new_objects": sum(not track[0] for track in seen),
        "re_entries": sum(int((np.diff(np.flatnonzero(track)) > 1).sum()) for track in seen),
        "occlusions": sum(share >= _OCCLUDED for share in hidden),
        "mean_length": round(float(np.mean([track.sum() for track in seen])), 2) if seen else 0.0,
    }


def _count_links(tracks: Sequence[dict[str, Any]]) -> tuple[int, int, int]:
    """Links of one video, and how many of them the nearest centre and the largest IoU find."""
    counts = np.zeros(3, int)
    length = len(tracks[0]["segmentations"])
    frames = [
        [(track["id"], track["category_id"], track["segmentations"][t]) for track in tracks if track["segmentations"][t]]
        for t in range(length)
    ]
    for before, after in pairwise(frames):
        if not before or not after:
            continue
        ids, categories, segments = zip(*before, strict=True)
        next_ids, next_categories, next_segments = zip(*after, strict=True)
        same = np.equal.outer(categories, next_categories)
        distance = np.linalg.norm(_centres(segments)[:, None] - _centres(next_segments)[None], axis=2)
        iou = mask_api.iou(list(segments), list(next_segments), [False] * len(next_segments))
        truth = np.equal.outer(ids, next_ids)
        counts += (
            truth.sum(),
            (truth & _greedy(np.where(same, -distance, -np.inf))).sum(),
            (truth & _greedy(np.where(same & (iou > 0), iou, -np.inf))).sum(),
        )
    return int(counts[0]), int(counts[1]), int(counts[2])


def _centres(segments: Sequence[dict[str, Any]]) -> np.ndarray:
    """(N, 2) mean row and column of each mask."""
    return np.stack([np.argwhere(mask).mean(axis=0) for mask in np.moveaxis(mask_api.decode(list(segments)), 2, 0)])


def _greedy(score: np.ndarray) -> np.ndarray:
    """(N, M) bool pairing of rows and columns, best finite score first."""
    score, paired = score.copy(), np.zeros(score.shape, bool)
    for _ in range(min(score.shape)):
        row, column = np.unravel_index(score.argmax(), score.shape)
        if score[row, column] == -np.inf:
            break
        paired[row, column] = True
        score[row], score[:, column] = -np.inf, -np.inf
    return paired
