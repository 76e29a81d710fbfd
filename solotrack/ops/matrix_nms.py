"""Matrix NMS: suppression by decaying scores, in one step for all masks."""

from __future__ import annotations

import torch

from .masks import mask_areas, mask_intersections

__all__ = ["matrix_nms"]


def matrix_nms(
    masks: torch.Tensor,
    labels: torch.Tensor,
    scores: torch.Tensor,
    areas: torch.Tensor | None = None,
    kernel: str = "gaussian",
    sigma: float = 2.0,
) -> torch.Tensor:
    """Scores decayed by the overlap with better masks of the same class (METHOD 1.5.5).

    The decay of j is the smallest over its better i of f(IoU_ij) / f(comp_i), comp_i being i's own largest IoU with a better one.

    Args:
        masks: (n, H, W) bool, sorted by score descending.
        labels: (n,) classes.
        scores: (n,).
        areas: (n,) pixels of the masks, where the caller has them.
        kernel: "gaussian", f(u) = exp(-sigma u^2), or "linear", f(u) = 1 - u.
        sigma: of the gaussian.

    Returns:
        (n,) decayed scores in the order of the input.

    Raises:
        ValueError: an unknown kernel.
    """
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f"Matrix NMS has no kernel {kernel!r}; use 'gaussian' or 'linear'.")
    if len(masks) == 0:
        return scores
    inter = mask_intersections(masks, masks)
    areas = mask_areas(masks) if areas is None else areas
    iou = inter / (areas[:, None] + areas[None, :] - inter).clamp(min=1)
    # Pairs that do not count have IoU 0, whose factor is at least 1. The first row's comp is 0, so the minimum is at most 1 without them.
    iou = (iou * (labels[:, None] == labels[None, :])).triu(1)  # (i better, j)
    comp = iou.amax(0)[:, None]
    if kernel == "gaussian":
        return scores * torch.exp(-sigma * (iou.square() - comp.square())).amin(0)
    return scores * ((1 - iou) / (1 - comp).clamp(min=1e-6)).amin(0)  # comp is 1 for a copy of a better mask
