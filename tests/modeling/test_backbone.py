from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from solotrack.config import load_config
from solotrack.modeling.backbone import MobileNetV2  # registers the builders too


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


def test_mobilenetv2_levels_and_what_trains() -> None:
    model = build(["MODEL.BACKBONE.NAME", "build_mobilenetv2_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 2])
    features = model(torch.rand(2, 3, 64, 96))
    assert [features[name].shape[1:] for name in ("p2", "p3", "p4", "p5", "p6")] == [
        (24, 16, 24),
        (24, 8, 12),
        (24, 4, 6),
        (24, 2, 3),
        (24, 1, 2),
    ]
    assert {name: shape.stride for name, shape in model.output_shape().items()} == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert {name: (s.channels, s.stride) for name, s in model.bottom_up.output_shape().items()} == {
        "res2": (24, 4),
        "res3": (32, 8),
        "res4": (96, 16),
        "res5": (320, 32),
    }
    frozen = [not any(p.requires_grad for p in block.parameters()) for block in model.bottom_up.features]
    assert frozen == [True] * 4 + [False] * 14
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(("freeze_at", "blocks"), [(0, 0), (1, 2), (2, 4), (3, 7), (4, 14), (5, 18)])
def test_mobilenetv2_freezes_whole_stages(freeze_at: int, blocks: int) -> None:
    model = MobileNetV2(norm="BN", freeze_at=freeze_at).train()
    features = model.features
    assert [next(block.parameters()).requires_grad for block in features] == [False] * blocks + [True] * (18 - blocks)
    statistics = [[x.clone() for name, x in block.named_buffers() if "running" in name] for block in features]
    model(torch.rand(2, 3, 64, 64))
    for number, (block, before) in enumerate(zip(features, statistics, strict=True)):
        after = [x for name, x in block.named_buffers() if "running" in name]
        assert len(after) == len(before) > 0
        assert all(torch.equal(a, b) == (number < blocks) for a, b in zip(after, before, strict=True))
