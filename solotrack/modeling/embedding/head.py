"""The embedding head: one vector for every grid cell, beside SOLO's category and mask branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from solotrack.modeling.solo.head import Tower
from solotrack.ops.similarity import NORM_EPS

__all__ = ["EmbeddingHead"]


class EmbeddingHead(nn.Module):
    """A copy of SOLO's category branch that ends in D channels (paper §3.2, METHOD 2.1).

    Each level's feature is resized to S×S (bilinear, as the category branch does), goes through a tower of 3×3 convolutions (or
    ``kernel_size``) with GroupNorm and ReLU, and a last one to D channels without an activation. Weights are shared by all levels.
    No coordinates are fed by default: the embedding is to rely on appearance, not location (paper §3.2, iii).

    Zero padding tells a network where in the image it is as far as its receptive field reaches, and image losses that compare instances
    within an image can be solved by that alone. In small images, all of which FPN's levels see, reading an early stage of the bottom-up
    network through 1x1 convolutions hides the border from most places (METHOD 16).

    Attributes:
        null_logit: scalar buffer, the calibrated logit that stands for "a new object" when tracking (METHOD 5.3); NaN = not
            calibrated. A buffer, so that it travels with the checkpoint it was measured on.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_grids: Sequence[int],
        dim: int = 256,
        num_convs: int = 7,
        channels: int = 256,
        norm: str = "GN",
        num_groups: int = 32,
        out_norm: str = "none",
        coord: bool = False,
        separate_per_level: bool = False,
        kernel_size: int = 3,
    ):
        """
        Args:
            in_channels: channels of every level's feature.
            num_grids: S of each level.
            dim: D, length of an embedding.
            num_convs, channels, norm, num_groups: of the tower, see ``Tower``.
            out_norm: "none", "l2" (embeddings of unit length) or "layernorm" (over D, learned gain and bias).
            coord: feed the x and y coordinates to the tower, as the mask branch does.
            separate_per_level: a tower and an output convolution for each level.
            kernel_size: of all convolutions, odd.
        """
        super().__init__()
        self.num_grids = list(num_grids)
        self.dim = dim
        self.out_norm = out_norm
        copies = len(self.num_grids) if separate_per_level else 1
        self.towers = nn.ModuleList(
            Tower(in_channels, channels, num_convs, norm=norm, num_groups=num_groups, coord=coord, kernel_size=kernel_size)
            for _ in range(copies)
        )
        self.outputs = nn.ModuleList(nn.Conv2d(channels, dim, kernel_size=kernel_size, padding=kernel_size // 2) for _ in range(copies))
        for output in self.outputs:
            nn.init.normal_(output.weight, std=0.01)
            nn.init.zeros_(output.bias)
        self.layer_norm = nn.LayerNorm(dim) if out_norm == "layernorm" else None
        self.register_buffer("null_logit", torch.tensor(float("nan")))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """``input_shape`` has FPN's outputs and, for EMB.STAGE, those of the bottom-up network."""
        solo, emb = cfg.MODEL.SOLO, cfg.MODEL.SOLO_TRACK.EMB
        return {
            "in_channels": input_shape[emb.STAGE or solo.IN_FEATURES[0]].channels,
            "num_grids": solo.NUM_GRIDS,
            "dim": emb.DIM,
            "num_convs": emb.NUM_CONVS,
            "channels": emb.CHANNELS,
            "norm": solo.NORM,
            "num_groups": solo.NUM_GROUPS,
            "out_norm": emb.OUT_NORM,
            "coord": emb.COORD,
            "separate_per_level": emb.SEPARATE_PER_LEVEL,
            "kernel_size": emb.KERNEL_SIZE,
        }

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embedding of every cell.

        Args:
            features: for each level (N, Cin, H_l, W_l), ``Features.for_embedding`` of the network.

        Returns:
            (N, R, D), cells level by level and row by row: flat index = offset of the level + row * S + column.

        Raises:
            ValueError: as many features as levels are needed.
        """
        if len(features) != len(self.num_grids):
            raise ValueError(f"The embedding head has {len(self.num_grids)} levels but got {len(features)} features.")
        levels = []
        for level, (feature, size) in enumerate(zip(features, self.num_grids, strict=True)):
            copy = level % len(self.towers)
            cells = F.interpolate(feature, size=(size, size), mode="bilinear", align_corners=False)
            cells = self.outputs[copy](self.towers[copy](cells))  # (N, D, S, S)
            levels.append(cells.flatten(2).transpose(1, 2))
        embeddings = torch.cat(levels, dim=1)
        if self.out_norm == "l2":
            return F.normalize(embeddings.float(), dim=2, eps=NORM_EPS)
        return embeddings if self.layer_norm is None else self.layer_norm(embeddings)
