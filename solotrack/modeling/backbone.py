"""Backbones for few CPU cores, both with FPN: a small ResNet to train from scratch, and MobileNetV2 with weights from elsewhere."""

from __future__ import annotations

from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, Backbone, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock
from torchvision.models import mobilenet_v2

__all__ = ["MobileNetV2", "build_mobilenetv2_fpn_backbone", "build_small_resnet_fpn_backbone"]

_STAGES = {"res2": 3, "res3": 6, "res4": 13, "res5": 17}  # last of torchvision's blocks with a stride of 4, 8, 16, 32


class MobileNetV2(Backbone):
    """torchvision's MobileNetV2 without its last 1x1 convolution and classifier; its parameters keep torchvision's names.

    Attributes:
        features: the stem and 17 blocks.
    """

    def __init__(self, norm: str = "FrozenBN", freeze_at: int = 0):
        """
        Args:
            norm: "FrozenBN" for pretrained weights and small batches, or another of Detectron2's norms; GroupNorm's 32 groups do not fit.
            freeze_at: stages from the stem on that do not train, nor gather statistics: 1 = stem and first block, 2 = up to stride 4, ...
                5 = all.
        """
        super().__init__()
        self.features = mobilenet_v2(norm_layer=partial(get_norm, norm)).features[: _STAGES["res5"] + 1]
        ends = [0, 2, *(block + 1 for block in _STAGES.values())]
        for block in self.features[: ends[min(freeze_at, 5)]]:
            FrozenBatchNorm2d.convert_frozen_batchnorm(block.requires_grad_(False))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N, 3, H, W) -> "res2" to "res5", (N, 24 | 32 | 96 | 320, H / stride, W / stride) with strides 4, 8, 16 and 32."""
        outputs = []
        for block in self.features:
            image = block(image)
            outputs.append(image)
        return {name: outputs[block] for name, block in _STAGES.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each output."""
        return {
            name: ShapeSpec(channels=self.features[block].out_channels, stride=2 ** (level + 2))
            for level, (name, block) in enumerate(_STAGES.items())
        }


@BACKBONE_REGISTRY.register()
def build_mobilenetv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MobileNetV2 (MODEL.MOBILENETV2, MODEL.BACKBONE.FREEZE_AT) with FPN (MODEL.FPN): outputs p2 to p6 of strides 4 to 64."""
    return _with_fpn(cfg, MobileNetV2(norm=cfg.MODEL.MOBILENETV2.NORM, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT))


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet of basic blocks (MODEL.SMALL_RESNET) with FPN (MODEL.FPN): outputs p2 to p6 of strides 4 to 64.

    It is trained from scratch, so MODEL.BACKBONE.FREEZE_AT does not apply.
    """
    small = cfg.MODEL.SMALL_RESNET
    stem = BasicStem(in_channels=input_shape.channels, out_channels=small.STEM_CHANNELS, norm=small.NORM)
    stages = []
    in_channels = small.STEM_CHANNELS
    for index, (channels, blocks) in enumerate(zip(small.CHANNELS, small.BLOCKS, strict=True)):
        strides = [1 if index == 0 else 2] + [1] * (blocks - 1)
        stages.append(
            ResNet.make_stage(BasicBlock, blocks, in_channels=in_channels, out_channels=channels, stride_per_block=strides, norm=small.NORM)
        )
        in_channels = channels
    return _with_fpn(cfg, ResNet(stem, stages, out_features=list(_STAGES)))


def _with_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=list(_STAGES),
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
