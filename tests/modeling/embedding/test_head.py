from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

from solotrack.config import add_solotrack_config
from solotrack.modeling.embedding import EmbeddingHead

GRIDS = [5, 4, 2]


def build(**options: object) -> EmbeddingHead:
    torch.manual_seed(0)
    return EmbeddingHead(**{"in_channels": 6, "num_grids": GRIDS, "dim": 7, "num_convs": 2, "channels": 8, "num_groups": 4, **options})


def features(seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 6, h, w, generator=rng) for h, w in ((12, 16), (12, 16), (6, 8))]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("coord", [False, True])
def test_cells_are_level_major_and_row_major(separate: bool, coord: bool) -> None:
    head = build(separate_per_level=separate, coord=coord)
    result = head(features())
    assert result.shape == (2, 25 + 16 + 4, 7)
    flat = 0
    for level, (feature, size) in enumerate(zip(features(), GRIDS, strict=True)):
        copy = level if separate else 0
        grid = F.interpolate(feature, size=(size, size), mode="bilinear", align_corners=False)
        grid = head.outputs[copy](head.towers[copy](grid))
        for row in range(size):
            for column in range(size):
                torch.testing.assert_close(result[:, flat], grid[:, :, row, column])
                flat += 1


def test_weights_are_shared_unless_asked_otherwise() -> None:
    def count(head: EmbeddingHead) -> int:
        return sum(p.numel() for p in head.parameters())

    assert count(build(separate_per_level=True)) == 3 * count(build())
    assert count(build(coord=True)) == count(build()) + 2 * 8 * 9


def test_output_layer_is_linear_with_small_weights_and_no_bias() -> None:
    head = build(channels=64, num_groups=8, dim=128)
    (output,) = head.outputs
    assert output.kernel_size == (3, 3)
    assert output.bias.abs().sum() == 0
    assert output.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert (head(features()) < 0).any()


def test_output_norms() -> None:
    plain = build()(features())
    torch.testing.assert_close(build(out_norm="l2")(features()), F.normalize(plain, dim=2))
    torch.testing.assert_close(build(out_norm="layernorm")(features()), F.layer_norm(plain, (7,)))
    half = build(out_norm="l2")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lengths = half(features()).norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_weight_and_every_feature() -> None:
    head = build(out_norm="layernorm")
    inputs = [feature.requires_grad_() for feature in features()]
    head(inputs).square().sum(dim=(0, 2)).dot(torch.arange(45.0)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [*head.parameters(), *inputs])


def test_the_calibrated_null_logit_travels_with_the_weights() -> None:
    head = build()
    assert head.null_logit.isnan()
    head.null_logit.fill_(-1.25)
    other = build()
    other.load_state_dict(head.state_dict())
    assert other.null_logit.item() == -1.25
    assert not other.null_logit.requires_grad


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_kernel_size_is_that_of_every_convolution(kernel_size: int) -> None:
    head = build(kernel_size=kernel_size)
    assert {m.kernel_size for m in head.modules() if isinstance(m, torch.nn.Conv2d)} == {(kernel_size, kernel_size)}
    assert head(features()).shape == build()(features()).shape


def test_a_missing_level_is_refused() -> None:
    with pytest.raises(ValueError, match="3 levels but got 2"):
        build()(features()[:2])


def test_from_config_is_the_category_tower_with_256_outputs() -> None:
    cfg = get_cfg()
    add_solotrack_config(cfg)
    shapes = {name: ShapeSpec(channels=16, stride=2**level) for level, name in enumerate(cfg.MODEL.SOLO.IN_FEATURES, start=2)}
    cfg.MODEL.SOLO_TRACK.EMB.CHANNELS = 32
    head = EmbeddingHead(cfg, shapes)
    assert head.num_grids == [40, 36, 24, 16, 12]
    assert len(head.towers) == 1
    assert sum(isinstance(m, torch.nn.GroupNorm) for m in head.modules()) == 7
    assert (head.outputs[0].in_channels, head.outputs[0].out_channels) == (32, 256)
    assert head.out_norm == "none"
    cfg.MODEL.SOLO_TRACK.EMB.merge_from_list(["SEPARATE_PER_LEVEL", True, "COORD", True, "OUT_NORM", "l2", "DIM", 64, "NUM_CONVS", 2])
    head = EmbeddingHead(cfg, shapes)
    assert (len(head.towers), head.out_norm, head.dim) == (5, "l2", 64)
    assert next(head.towers[0].parameters()).shape[1] == 18
