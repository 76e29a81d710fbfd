"""Instances cut out of a labelled image and pasted into another, or into itself: new neighbours, new surroundings, more occlusion.

METHOD 11, idea 2; METHOD 16 for an image's own instances.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

__all__ = ["CopyPaste"]


class CopyPaste:
    """Simple copy-paste (Ghiasi et al., CVPR 2021), with a scale and a place of its own for every cut-out."""

    def __init__(self, max_instances: int, scale_range: tuple[float, float], min_visible: float) -> None:
        """
        Args:
            max_instances: pasted into an image; 1 to this many.
            scale_range: (smallest, largest) size of a pasted instance over that of the original, log-uniform between; less where it would
                not fit into the image.
            min_visible: share of an instance's mask, 0 to 1, that must remain unhidden; with less it has no mask and is background.
        """
        self.max_instances, self.scale_range, self.min_visible = max_instances, tuple(scale_range), min_visible

    def __call__(
        self, image: np.ndarray, masks: np.ndarray, donor: np.ndarray, donor_masks: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Args:
            image: (H, W, 3) uint8, not changed.
            masks: (M, H, W) uint8, 0 or 1, none empty; they may overlap.
            donor: (h, w, 3) uint8, the image that instances are taken from; may be ``image``.
            donor_masks: (D, h, w) uint8, none empty.
            rng: decides which instances, their sizes, places and order in depth.

        Returns:
            The new image, the masks (K, H, W) uint8 of what can be seen in it, and which of the M instances, followed by the D of the
            donor, these are: (K,) int64.
        """
        height, width = image.shape[:2]
        chosen = rng.permutation(len(donor_masks))[: rng.integers(1, self.max_instances, endpoint=True)]
        result = image.copy()
        owner = np.full((height, width), -1)  # pasted instance on top at each pixel
        whole = np.zeros(len(chosen), dtype=np.int64)  # pixels of each before anything hides it
        for number, index in enumerate(chosen):
            pixels, shape = self._cut_out(donor, donor_masks[index], (height, width), rng)
            h, w = shape.shape
            y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            target = np.s_[y : y + h, x : x + w]
            result[target][shape] = pixels[shape]
            owner[target][shape] = number
            whole[number] = np.count_nonzero(shape)

        visible = np.concatenate([masks.astype(bool) & (owner < 0), owner == np.arange(len(chosen))[:, None, None]])
        whole = np.concatenate([np.count_nonzero(masks, axis=(1, 2)), whole])
        seen = np.count_nonzero(visible, axis=(1, 2))
        kept = np.flatnonzero((seen > 0) & (seen >= self.min_visible * whole))
        return result, visible[kept].view(np.uint8), np.concatenate([np.arange(len(masks)), len(masks) + chosen])[kept]

    def _cut_out(
        self, donor: np.ndarray, mask: np.ndarray, room: tuple[int, int], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """An instance at a random size that fits into ``room`` (H, W): the pixels of its box (h, w, 3), and which of them are its own."""
        rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        h, w = mask[box].shape
        scale = min(math.exp(rng.uniform(*np.log(self.scale_range))), room[0] / h, room[1] / w)
        size = (max(1, round(scale * w)), max(1, round(scale * h)))
        pixels = cv2.resize(donor[box], size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        return pixels, cv2.resize(mask[box], size, interpolation=cv2.INTER_NEAREST).astype(bool)
