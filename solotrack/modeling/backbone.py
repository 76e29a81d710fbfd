"""A small ResNet with FPN for training on few CPU cores."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock

__all__ = ["build_small_resnet_fpn_backbone"]


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
    out_features = ["res2", "res3", "res4", "res5"]
    return FPN(
        bottom_up=ResNet(stem, stages, out_features=out_features),
        in_features=out_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
