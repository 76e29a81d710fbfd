from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

import solotrack.modeling.backbone  # noqa: F401  registers the builder
from solotrack.config import load_config


def build(overrides: list | None = None) -> torch.nn.Module:
    cfg = load_config(
        overrides=["MODEL.BACKBONE.NAME", "build_small_resnet_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 24, *(overrides or [])]
    )
    return build_backbone(cfg, ShapeSpec(channels=3))


def test_levels_strides_and_sizes() -> None:
    model = build()
    features = model(torch.zeros(2, 3, 64, 96))
    assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
    assert [features[name].shape[1:] for name in features] == [(24, 16, 24), (24, 8, 12), (24, 4, 6), (24, 2, 3), (24, 1, 2)]
    assert {name: shape.stride for name, shape in model.output_shape().items()} == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert model.size_divisibility == 32


def test_widths_and_depths_follow_the_config_and_all_train() -> None:
    model = build(
        ["MODEL.SMALL_RESNET.CHANNELS", [8, 16, 24, 40], "MODEL.SMALL_RESNET.BLOCKS", [2, 1, 3, 1], "MODEL.BACKBONE.FREEZE_AT", 2]
    )
    stages = [model.bottom_up.res2, model.bottom_up.res3, model.bottom_up.res4, model.bottom_up.res5]
    assert [len(stage) for stage in stages] == [2, 1, 3, 1]
    assert [stage[-1].out_channels for stage in stages] == [8, 16, 24, 40]
    assert all(p.requires_grad for p in model.parameters())


def test_wrong_number_of_stages() -> None:
    with pytest.raises(ValueError, match="four numbers"):
        build(["MODEL.SMALL_RESNET.BLOCKS", [1, 1, 1]])
