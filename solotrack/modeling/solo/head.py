"""SOLO's category and mask branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from torch import nn
from torch.nn import functional as F

__all__ = ["SOLO_HEADS", "DecoupledSOLOHead", "SOLOHead", "Tower"]


class Tower(nn.Sequential):
    """A stack of [convolution, GroupNorm, ReLU], 3x3 by default (METHOD 1.2)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_convs: int,
        norm: str = "GN",
        num_groups: int = 32,
        coord: bool = False,
        kernel_size: int = 3,
    ):
        """
        Args:
            in_channels: of the feature map.
            channels: of every convolution.
            num_convs: how many.
            norm: "GN" or "" for none (the convolutions then have a bias).
            num_groups: of GroupNorm.
            coord: append two channels to the input that hold x, then y, in [-1, 1] (CoordConv).
            kernel_size: of every convolution, odd.
        """
        convs = []
        channels_in = in_channels + (2 if coord else 0)
        for _ in range(num_convs):
            conv = Conv2d(
                channels_in,
                channels,
                kernel_size=kernel_size,
                padding=kernel_size // 2,
                bias=not norm,
                norm=nn.GroupNorm(num_groups, channels) if norm else None,
                activation=F.relu_,
            )
            _init_conv(conv, bias=0.0)
            convs.append(conv)
            channels_in = channels
        super().__init__(*convs)
        self.coord = coord

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, h, w) -> (N, channels, h, w)."""
        if self.coord:
            x = torch.cat([x, _coordinates(x)], dim=1)
        return super().forward(x)


def _coordinates(x: torch.Tensor) -> torch.Tensor:
    """(N, 2, h, w): x and y of every pixel of ``x`` (N, C, h, w), from -1 at the first to 1 at the last."""
    n, _, h, w = x.shape
    ys = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)
    xs = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype)
    return torch.stack([xs.expand(h, w), ys[:, None].expand(h, w)]).expand(n, 2, h, w)


def _init_conv(conv: nn.Conv2d, bias: float) -> None:
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)


class SOLOHead(nn.Module):
    """Category and mask branches of SOLO (v1), shared by all levels but for the last convolution of the masks.

    A level has S x S grid cells, cell (i, j) (row, column) having index i * S + j in its level. The R cells of all levels are numbered
    level after level: ``level_offsets[l]`` is the first of level l and ``level_offsets[-1]`` is R.

    Paper: "SOLO: Segmenting Objects by Locations" (ECCV 2020); METHOD 1.1, 1.2.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        strides: Sequence[int],
        num_grids: Sequence[int],
        num_convs: int = 7,
        channels: int = 256,
        norm: str = "GN",
        num_groups: int = 32,
        prior_prob: float = 0.01,
    ):
        """
        Args:
            in_channels: of every feature map.
            num_classes: C.
            strides: of each level's feature map as the branches see it, in pixels of the padded image.
            num_grids: S of each level.
            num_convs, channels, norm, num_groups: of both towers, see :class:`Tower`.
            prior_prob: probability the output biases start at.
        """
        super().__init__()
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.num_grids = tuple(num_grids)
        self.level_offsets = (0, *accumulate(s * s for s in num_grids))

        self.category_tower = Tower(in_channels, channels, num_convs, norm, num_groups)
        self.mask_tower = Tower(in_channels, channels, num_convs, norm, num_groups, coord=True)
        self.category_out = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        _init_conv(self.category_out, bias=_logit(prior_prob))
        self.mask_out = nn.ModuleList(self._mask_output(channels, s) for s in num_grids)
        for conv in self.mask_out:
            _init_conv(conv, bias=_logit(self._mask_prior(prior_prob)))

    @staticmethod
    def _mask_output(channels: int, num_grid: int) -> nn.Conv2d:
        """The last convolution of the masks of a level with ``num_grid`` x ``num_grid`` cells."""
        return nn.Conv2d(channels, num_grid * num_grid, kernel_size=1)

    @staticmethod
    def _mask_prior(prior_prob: float) -> float:
        """The probability each output of it starts at, for a mask that starts at ``prior_prob``."""
        return prior_prob

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        solo = cfg.MODEL.SOLO
        in_channels = {input_shape[name].channels for name in solo.IN_FEATURES}
        if len(in_channels) != 1:
            raise ValueError(
                f"MODEL.SOLO.IN_FEATURES {solo.IN_FEATURES} have {sorted(in_channels)} channels; all must have the same number."
            )
        return {
            "in_channels": in_channels.pop(),
            "num_classes": solo.NUM_CLASSES,
            "strides": solo.STRIDES,
            "num_grids": solo.NUM_GRIDS,
            "num_convs": solo.NUM_CONVS,
            "channels": solo.CHANNELS,
            "norm": solo.NORM,
            "num_groups": solo.NUM_GROUPS,
            "prior_prob": solo.PRIOR_PROB,
        }

    @property
    def num_cells(self) -> int:
        """R, the grid cells of all levels."""
        return self.level_offsets[-1]

    def rescale(self, features: Sequence[torch.Tensor], padded_size: tuple[int, int]) -> list[torch.Tensor]:
        """Bring every level's feature map (N, Cin, h, w) to its head stride: (N, Cin, Hp / stride, Wp / stride) (METHOD 1.1).

        Raises:
            ValueError: ``padded_size`` (Hp, Wp) is no multiple of a stride, or there are too few or too many feature maps.
        """
        height, width = padded_size
        rescaled = []
        for feature, stride in zip(features, self.strides, strict=True):
            if height % stride or width % stride:
                raise ValueError(
                    f"The padded size {height}x{width} is no multiple of {stride} (MODEL.SOLO.STRIDES); pad images to a multiple of it."
                )
            size = (height // stride, width // stride)
            rescaled.append(feature if feature.shape[-2:] == size else _bilinear(feature, size))
        return rescaled

    def category_logits(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Class logits of every cell: rescaled features, one (N, Cin, h, w) a level -> (N, R, C)."""
        logits = []
        for feature, s in zip(features, self.num_grids, strict=True):
            grid = self.category_out(self.category_tower(_bilinear(feature, (s, s))))  # (N, C, S, S)
            logits.append(grid.flatten(2).transpose(1, 2))
        return torch.cat(logits, dim=1)

    def mask_features(self, features: Sequence[torch.Tensor], levels: Sequence[int] | None = None) -> list[torch.Tensor]:
        """The mask tower's output for the asked levels (all by default), in their order: (N, channels, h, w) each.

        It is what :meth:`mask_logits` takes, at the stride of the level. The branch's x2 upsampling comes after the last convolution, not
        before it: both are linear and the weights of bilinear interpolation add up to 1, so they commute, and the maps of a few cells are
        cheaper to upsample than all channels.
        """
        return [self.mask_tower(features[level]) for level in (range(len(features)) if levels is None else levels)]

    def mask_logits(self, mask_feature: torch.Tensor, level: int, cells: torch.Tensor) -> torch.Tensor:
        """Mask logits of some cells of one image.

        Only these cells' rows of the level's S^2-channel convolution are computed; the values are those of the whole one.

        Args:
            mask_feature: (channels, h, w), one image of :meth:`mask_features`.
            level: the level it belongs to.
            cells: (n,) int64, indices within the level.

        Returns:
            (n, 2h, 2w).
        """
        conv = self.mask_out[level]
        weight = conv.weight.flatten(1).index_select(0, cells)  # (n, channels)
        bias = conv.bias.index_select(0, cells)[:, None]
        maps = torch.addmm(bias, weight, mask_feature.flatten(1))  # (n, hw)
        height, width = mask_feature.shape[1:]
        return _bilinear(maps.view(len(cells), 1, height, width), (2 * height, 2 * width))[:, 0]


class DecoupledSOLOHead(SOLOHead):
    """SOLO's head with 2 S mask maps a level in place of S^2: the mask of cell (i, j) is sigmoid(x_j) * sigmoid(y_i).

    A map is shared by the S cells of its column or row, so it is trained S times as often: what little data or few steps need. One tower
    with both coordinates feeds both, as in Decoupled-Light; the last convolution comes before the x2 upsampling here (METHOD 1.8).
    """

    @staticmethod
    def _mask_output(channels: int, num_grid: int) -> nn.Conv2d:
        return nn.Conv2d(channels, 2 * num_grid, kernel_size=3, padding=1)

    @staticmethod
    def _mask_prior(prior_prob: float) -> float:
        return math.sqrt(prior_prob)

    def mask_logits(self, mask_feature: torch.Tensor, level: int, cells: torch.Tensor) -> torch.Tensor:
        """Mask logits (n, 2h, 2w) of some cells of one image, as :meth:`SOLOHead.mask_logits`; the sigmoid of them is the product."""
        s = self.num_grids[level]
        maps = self.mask_out[level](mask_feature[None])  # (1, 2S, h, w), columns before rows
        height, width = mask_feature.shape[1:]
        columns, rows = _bilinear(maps, (2 * height, 2 * width))[0].float().split(s)
        x, y = columns[cells % s], rows[cells // s]
        # log p / (1 - p) of p = 1 / ((1 + exp -x) (1 + exp -y)), without overflow
        return -torch.logaddexp(torch.logaddexp(-x, -y), -x - y)


SOLO_HEADS = {"solo": SOLOHead, "decoupled": DecoupledSOLOHead}  # MODEL.SOLO.TYPE


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _bilinear(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Plain bilinear resize without antialiasing, as SOLO's weights expect."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
