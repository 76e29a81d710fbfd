"""Bring images of very different exposure to one range of grey levels (microscopy, thermal, night)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

__all__ = ["Stretch"]


@dataclass(frozen=True)
class Stretch:
    """Map two percentiles of an image's grey levels to 0 and 255, then apply a gamma.

    Attributes:
        low, high: percentiles, 0 to 100.
        gamma: exponent on intensities in [0, 1]; below 1 lifts faint objects beside bright ones.
    """

    low: float
    high: float
    gamma: float

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Stretch | None:
        """INPUT.STRETCH, or None where it is off."""
        node = cfg.INPUT.STRETCH
        return cls(node.LOW, node.HIGH, node.GAMMA) if node.ENABLED else None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W, 3) uint8; the channels share the two levels, so colours keep their hue. A flat image stays as it is."""
        low, high = np.percentile(image, (self.low, self.high))
        if high <= low:
            return image
        levels = np.clip((np.arange(256) - low) / (high - low), 0, 1) ** self.gamma
        return np.round(255 * levels).astype(np.uint8)[image]
