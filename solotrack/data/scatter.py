"""The same instances, each moved to a random other place: neither location nor surroundings tell any more which one it is."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["scatter_instances"]

_TRIES = 16  # places looked at for an instance; the one that hides the least is taken


def scatter_instances(image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut every instance out and put it somewhere else; what it leaves behind is painted over.

    Each instance moves on its own, uniformly over the places where its box fits, so its position tells nothing about which one it is.

    Args:
        image: (H, W, 3) uint8.
        masks: (n, H, W) bool, one an instance.
        rng: source of the places and of the depth order.

    Returns:
        The new image (H, W, 3) uint8, and its masks (n, H, W) bool in the order given: the visible parts, empty where all is hidden.
    """
    height, width = masks.shape[1:]
    moved = _without_instances(image, masks)
    owner = np.full((height, width), -1)  # instance on top at each pixel
    for index in rng.permutation(len(masks)):
        rows, cols = np.flatnonzero(masks[index].any(axis=1)), np.flatnonzero(masks[index].any(axis=0))
        if len(rows) == 0:
            continue
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        crop = masks[index][box]
        h, w = crop.shape
        places = np.stack([rng.integers(0, height - h + 1, _TRIES), rng.integers(0, width - w + 1, _TRIES)], axis=1)
        hidden = [np.count_nonzero(owner[y : y + h, x : x + w][crop] >= 0) for y, x in places]
        y, x = places[int(np.argmin(hidden))]
        target = np.s_[y : y + h, x : x + w]
        moved[target][crop] = image[box][crop]
        owner[target][crop] = index
    return moved, owner == np.arange(len(masks))[:, None, None]


def _without_instances(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The image with every instance painted over by what surrounds it: a weighted mean of background pixels, the near ones first."""
    height, width = image.shape[:2]
    hidden = cv2.dilate(masks.any(axis=0).astype(np.uint8), np.ones((3, 3), np.uint8))
    weight = (1 - hidden).astype(np.float32)
    weighted = image * weight[..., None]
    total, share = np.zeros_like(weighted), np.full((height, width), 1e-6, np.float32)
    for size in (9, 33, 2 * max(height, width) + 1):  # pixels; the last reaches everywhere
        kernel = (size, size)
        importance = np.float32(1.0 / size**2)  # a wider window speaks where the narrower ones see nothing
        total += importance * cv2.boxFilter(weighted, -1, kernel, normalize=True, borderType=cv2.BORDER_CONSTANT)
        share += importance * cv2.boxFilter(weight, -1, kernel, normalize=True, borderType=cv2.BORDER_CONSTANT)
    filled = image.copy()
    holes = hidden.astype(bool)
    filled[holes] = np.clip(np.round(total[holes] / share[holes, None]), 0, 255)
    return filled
