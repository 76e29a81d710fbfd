"""SipMask-VIS's head: FCOS's outputs, coefficients for each quarter of a box, basis masks and the tracking map, METHOD 7.2
(Cao et al., ECCV 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from ..solo.head import Tower

__all__ = ["SipMaskHead", "SipMaskPredictions"]

_FINE_LEVELS = 3  # that make the basis masks and the tracking map
_START_STRIDES = 4.0  # from a point to each side of its box, at first


@dataclass
class SipMaskPredictions:
    """Of N images with R locations, level after level and row by row; float32."""

    logits: torch.Tensor  # (N, R, C)
    deltas: torch.Tensor  # (N, R, 4) distances to left, top, right and bottom in strides, before the ReLU of the box transform
    centerness: torch.Tensor  # (N, R, 1) logits
    coefficients: torch.Tensor  # (N, R, 4, K) of the upper left, upper right, lower left and lower right quarter
    basis: torch.Tensor  # (N, K, h, w) at the stride of the finest level


class SipMaskHead(nn.Module):
    """Two towers as FCOS has them, shared by all levels, and what SipMask adds.

    Classes and mask coefficients come from the one tower, boxes and centerness from the other. The basis masks are made of the box tower's
    features of the three finest levels, the tracking map of the FPN's by convolutions of its own; both are brought to the finest level's
    size and concatenated for it.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        num_convs: int = 4,
        channels: int = 256,
        num_groups: int = 32,
        prior_prob: float = 0.01,
        num_bases: int = 32,
        track_convs: int = 2,
        track_dim: int = 512,
    ) -> None:
        """
        Args:
            in_channels: of every feature map.
            num_classes: C.
            num_convs, channels, num_groups: of each tower, see ``Tower``.
            prior_prob: probability of every class at first.
            num_bases: K.
            track_convs: convolutions of the tracking map before the levels are joined.
            track_dim: D, of an embedding.
        """
        super().__init__()
        self.num_bases = num_bases
        self.class_tower = Tower(in_channels, channels, num_convs, num_groups=num_groups)
        self.box_tower = Tower(in_channels, channels, num_convs, num_groups=num_groups)
        self.track_tower = Tower(in_channels, channels, track_convs, num_groups=num_groups)
        self.class_out = nn.Conv2d(channels, num_classes, kernel_size=3, padding=1)
        self.coefficient_out = nn.Conv2d(channels, 4 * num_bases, kernel_size=3, padding=1)
        self.box_out = nn.Conv2d(channels, 4, kernel_size=3, padding=1)
        self.center_out = nn.Conv2d(channels, 1, kernel_size=3, padding=1)
        self.track_out = nn.Conv2d(_FINE_LEVELS * channels, track_dim, kernel_size=1)
        for conv in (self.class_out, self.coefficient_out, self.box_out, self.center_out, self.track_out):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        nn.init.constant_(self.class_out.bias, -math.log((1 - prior_prob) / prior_prob))
        # at 0 the box transform's ReLU would keep the gradient from half of the sides
        nn.init.constant_(self.box_out.bias, _START_STRIDES)
        self.basis_join = nn.Conv2d(_FINE_LEVELS * channels, 2 * channels, kernel_size=1)
        self.basis_out = nn.Conv2d(2 * channels, num_bases, kernel_size=3, padding=1)
        for conv in (self.basis_join, self.basis_out):
            weight_init.c2_xavier_fill(conv)  # of unit size: masks are products of these and of coefficients that start near 0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        sip = cfg.MODEL.SIPMASK
        return {
            "in_channels": input_shape[sip.IN_FEATURES[0]].channels,
            "num_classes": sip.NUM_CLASSES,
            "num_convs": sip.NUM_CONVS,
            "channels": sip.CHANNELS,
            "num_groups": sip.NUM_GROUPS,
            "prior_prob": sip.PRIOR_PROB,
            "num_bases": sip.NUM_BASES,
            "track_convs": sip.TRACK_CONVS,
            "track_dim": sip.TRACK_DIM,
        }

    def forward(self, features: Sequence[torch.Tensor]) -> SipMaskPredictions:
        """Everything but the tracking map, from feature maps (N, Cin, h_l, w_l), the finest first, at least three."""
        levels = []
        box_features = []
        for feature in features:
            about_class, about_box = self.class_tower(feature), self.box_tower(feature)
            box_features.append(about_box)
            outputs = (self.class_out(about_class), self.box_out(about_box), self.center_out(about_box), self.coefficient_out(about_class))
            levels.append([x.flatten(2).transpose(1, 2) for x in outputs])  # (N, h_l·w_l, channels)
        logits, deltas, centerness, coefficients = (torch.cat(x, dim=1).float() for x in zip(*levels, strict=True))
        basis = F.relu(self.basis_out(F.relu(self.basis_join(_join(box_features)))))
        return SipMaskPredictions(logits, deltas, centerness, coefficients.unflatten(2, (4, self.num_bases)), basis.float())

    def track_map(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings (N, D, h, w) at the stride of the finest level, from feature maps as :meth:`forward` takes them."""
        return self.track_out(_join([self.track_tower(x) for x in features[:_FINE_LEVELS]]))


def _join(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The finest levels' maps (N, C, h_l, w_l) -> (N, 3·C, h, w), all at the size of the first."""
    size = features[0].shape[-2:]
    coarse = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in features[1:_FINE_LEVELS]]
    return torch.cat([features[0], *coarse], dim=1)
