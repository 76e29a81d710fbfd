"""Instance centers of past steps, kept as negatives (METHOD 2.5, as MoCo's queue)."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import nn

from .comparison import gather_centers

__all__ = ["CenterQueue"]


class CenterQueue(nn.Module):
    """A ring of the newest centers, without gradient.

    Its buffers are part of the model's state, so that a resumed run has the negatives that an unbroken one has. With several processes
    each holds the centers of all of them, hence the same ring, in the order of the processes.

    An instance is a negative of itself when its image comes again before its center is overwritten: keep the queue well below the number
    of training instances.

    Attributes:
        centers: (size, D) float32.
        levels: (size,) long, level of each center; -1 = the slot is empty.
        position: scalar long, the slot that is written next.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(size, dim))
        self.register_buffer("levels", torch.full((size,), -1))
        self.register_buffer("position", torch.tensor(0))

    @torch.no_grad()
    def push(self, centers: torch.Tensor, levels: torch.Tensor) -> None:
        """Write centers (K, D) and their levels (K,) over the oldest. Every process must make this call, with centers or without."""
        centers, levels = centers.detach(), levels[:, None]
        if comm.get_world_size() > 1:
            centers, levels = gather_centers(centers, levels)
        size = len(self.levels)
        centers, levels = centers[-size:], levels[-size:, 0]
        slots = (self.position + torch.arange(len(levels), device=levels.device)) % size
        self.centers.index_copy_(0, slots, centers)
        self.levels.index_copy_(0, slots, levels)
        self.position.copy_((self.position + len(levels)) % size)
