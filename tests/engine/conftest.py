"""A detector that can be checked by hand, and videos for it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from solotrack.ops.masks import masks_to_boxes

PALETTE = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40), (220, 40, 220))


class BlobDetector(nn.Module):
    """One instance for each colour of the palette that is in the image; class = number of the colour % 3, embedding = the colour, one-hot.

    Attributes:
        calls: for each call, the shapes of its images.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("palette", torch.tensor(PALETTE, dtype=torch.float32))
        self.embedding_head = nn.Module()
        self.embedding_head.register_buffer("null_logit", torch.tensor(float("nan")))
        self.calls: list[list[tuple[int, ...]]] = []
        self.contexts: list[tuple[bool, bool, torch.dtype | None]] = []  # gradients, inference mode, autocast type

    @property
    def device(self) -> torch.device:
        return self.palette.device

    def forward(self, inputs: list[dict]) -> list[dict]:
        self.calls.append([tuple(x["image"].shape) for x in inputs])
        autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        self.contexts.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast))
        return [{"instances": self.detect(x)} for x in inputs]

    def detect(self, x: dict) -> Instances:
        distance = (x["image"].float()[None] - self.palette[:, :, None, None]).abs().amax(dim=1)  # (colours, h, w)
        size = (x["height"], x["width"])
        masks = nn.functional.interpolate((distance < 70).float()[None], size=size, mode="nearest")[0] > 0.5
        found = masks.flatten(1).any(dim=1).nonzero()[:, 0]
        result = Instances(size)
        result.pred_masks = masks[found]
        result.pred_boxes = Boxes(masks_to_boxes(masks[found]))
        result.scores = 0.5 + 0.1 * found / len(PALETTE) + masks[found].flatten(1).float().mean(dim=1) / 4
        result.pred_classes = found % 3
        result.cell_indices = found
        result.embeddings = torch.eye(len(PALETTE))[found] * 8
        return result[result.scores.argsort(descending=True)]


def blob_frames(length: int, height: int = 60, width: int = 80, seed: int = 0) -> Iterator[np.ndarray]:
    """Frames with a square of each colour at a random place; every third frame lacks one of them. Made one at a time."""
    rng = np.random.default_rng(seed)
    side = min(height, width) // 6
    for t in range(length):
        image = np.full((height, width, 3), 90, np.uint8)
        for color_index, color in enumerate(PALETTE):
            y, x = rng.integers(0, height - side), rng.integers(0, width - side)
            if t % 3 or color_index != t % len(PALETTE):
                image[y : y + side, x : x + side] = color
        yield image


@pytest.fixture(scope="session")
def blobs() -> SimpleNamespace:
    return SimpleNamespace(Detector=BlobDetector, frames=blob_frames, palette=PALETTE)
