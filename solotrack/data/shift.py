"""Image pairs for the shift test: the same instances, each moved to a random other place (METHOD 15)."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["displaced_pair"]

_TRIES = 16  # places looked at for an instance; the one that hides the least is taken


def displaced_pair(image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut every instance out and put it somewhere else; what it leaves behind is painted over.

    Each instance moves on its own, uniformly over the places where its box fits, so its position tells nothing about which one it is.

    Args:
        image: (H, W, 3) uint8.
        masks: (n, H, W) bool, one an instance.
        rng: source of the places and of the depth order.

    Returns:
        The new image (H, W, 3) uint8, and its masks (n, H, W) bool in the order given: the visible parts, empty where others hide all of it.
    """
    height, width = masks.shape[1:]
    union = cv2.dilate(masks.any(axis=0).astype(np.uint8), np.ones((5, 5), np.uint8))
    moved = cv2.inpaint(image, union, 3, cv2.INPAINT_TELEA)
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
