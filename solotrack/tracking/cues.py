"""MaskTrack R-CNN's post-processing: detection score, overlap and class beside the appearance, METHOD 5.4 (Yang et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from solotrack.ops.masks import box_iou, mask_iou

from .assignment import DROPPED, NEW
from .memory import TrackMemory

__all__ = ["assign_masktrack", "cue_overlap", "cue_scores"]

_SMALLEST = 1e-12  # keeps the logarithm of a zero finite


def cue_scores(
    log_prob: torch.Tensor,
    scores: torch.Tensor,
    iou: torch.Tensor,
    same_class: torch.Tensor,
    score_weight: float = 1.0,
    iou_weight: float = 2.0,
    class_weight: float = 10.0,
) -> torch.Tensor:
    """v_i(n) = log p_i(n) + 1·log s_n + 2·IoU(n, i) + 10·[class_n = class_i]; the null entry has IoU 0 and counts as of the same class.

    Args:
        log_prob: (n, 1 + K), column 0 is the null entry.
        scores: (n,) detection scores s.
        iou: (n, K) overlap of detections and tracks.
        same_class: (n, K) bool.
        score_weight, iou_weight, class_weight: the coefficients.

    Returns:
        (n, 1 + K) float32, column 0 is the null entry.
    """
    cues = iou_weight * iou + class_weight * same_class
    null = cues.new_full((len(cues), 1), class_weight)
    return log_prob + score_weight * scores.float().clamp(min=_SMALLEST).log()[:, None] + torch.cat((null, cues), dim=1)


def cue_overlap(seen: Mapping[str, torch.Tensor], memory: TrackMemory, iou_type: str) -> torch.Tensor:
    """IoU (n, K) of detections with the tracks' last "box" (the original's, a pixel longer and wider) or "mask"."""
    if iou_type == "box":
        return box_iou(seen["boxes"], memory["boxes"], plus_one=True)
    return mask_iou(seen["masks"], memory["masks"])


def assign_masktrack(values: np.ndarray, null: np.ndarray, loser: str = "drop") -> np.ndarray:
    """MaskTrack R-CNN's rules: every detection takes the best of its null entry and all tracks, and has no second choice.

    The null entry wins a tie. Of several detections that take one track the best has it, the first of equals; the others are DROPPED.
    (The original goes through the detections in the order of score and lets a later, better one overwrite an earlier one in the result;
    with one result for a track that is the same.)

    Args:
        values: (n, K) of :func:`cue_scores`, without the null column.
        null: (n,) the null column.
        loser: "drop" as the original, or "new": a detection that lost its track starts one.

    Returns:
        (n,) int64: the row of the track, or NEW, or DROPPED, as :func:`~solotrack.tracking.assignment.assign` gives it.
    """
    match = np.full(len(values), NEW, dtype=np.int64)
    choice = values.argmax(axis=1)
    best = values.max(axis=1)
    takers = np.flatnonzero(best > null)
    takers = takers[np.lexsort((takers, -best[takers]))]  # best value first, then the earlier detection
    _, first = np.unique(choice[takers], return_index=True)
    winners = takers[first]
    if loser == "drop":
        match[takers] = DROPPED
    match[winners] = choice[winners]
    return match
