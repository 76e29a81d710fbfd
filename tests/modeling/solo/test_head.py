from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional as F

from solotrack.config import load_config
from solotrack.modeling.solo import DecoupledSOLOHead, SOLOHead, Tower

GRIDS = (6, 5, 4, 3, 2)
STRIDES = (8, 8, 16, 32, 32)


def make_head(seed: int = 0, channels: int = 8, kind: type[SOLOHead] = SOLOHead) -> SOLOHead:
    torch.manual_seed(seed)
    head = kind(in_channels=4, num_classes=3, strides=STRIDES, num_grids=GRIDS, num_convs=2, channels=channels, num_groups=4)
    for p in head.parameters():  # the real start is almost zero everywhere
        nn.init.normal_(p, std=0.3)
    return head


def pyramid(n: int = 2, height: int = 64, width: int = 96, seed: int = 1) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 4, -(-height // s), -(-width // s), generator=g) for s in (4, 8, 16, 32, 64)]


def test_rescale_halves_p2_and_brings_p6_to_p5() -> None:
    features = pyramid()
    rescaled = make_head().rescale(features, (64, 96))
    assert [f.shape[-2:] for f in rescaled] == [(8, 12), (8, 12), (4, 6), (2, 3), (2, 3)]
    torch.testing.assert_close(rescaled[0], F.avg_pool2d(features[0], 2))  # what bilinear x0.5 is
    assert all(rescaled[i] is features[i] for i in (1, 2, 3))
    torch.testing.assert_close(rescaled[4], F.interpolate(features[4], size=(2, 3), mode="bilinear", align_corners=False))


def test_rescale_names_a_size_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"72x96.*multiple of 16"):
        make_head().rescale(pyramid(), (72, 96))


def test_category_logits_are_level_after_level_row_after_row() -> None:
    head = make_head()
    features = head.rescale(pyramid(), (64, 96))
    logits = head.category_logits(features)
    assert logits.shape == (2, sum(s * s for s in GRIDS), 3)
    assert head.num_cells == logits.shape[1]
    for level, (feature, s) in enumerate(zip(features, GRIDS, strict=True)):
        x = F.interpolate(feature, size=(s, s), mode="bilinear", align_corners=False)
        for conv in head.category_tower:
            x = F.relu(F.group_norm(F.conv2d(x, conv.weight, padding=1), 4, conv.norm.weight, conv.norm.bias))
        x = F.conv2d(x, head.category_out.weight, head.category_out.bias, padding=1)
        for i in range(s):
            for j in range(s):
                torch.testing.assert_close(logits[:, head.level_offsets[level] + i * s + j], x[:, :, i, j])


def test_tower_gives_x_then_y_to_its_first_convolution() -> None:
    tower = Tower(1, 2, num_convs=1, norm="", coord=True)
    assert tower[0].weight.shape == (2, 3, 3, 3) and tower[0].bias is not None
    with torch.no_grad():
        tower[0].weight.zero_()
        tower[0].weight[0, 1, 1, 1] = tower[0].weight[1, 2, 1, 1] = 1  # x to the first output, y to the second
        tower[0].bias.fill_(1)
    out = tower(torch.randn(2, 1, 3, 5))
    torch.testing.assert_close(out[1, 0], torch.tensor([-1, -0.5, 0, 0.5, 1]).expand(3, 5) + 1)
    torch.testing.assert_close(out[1, 1], torch.tensor([[-1.0], [0], [1]]).expand(3, 5) + 1)


def test_start_values() -> None:
    torch.manual_seed(0)
    head = SOLOHead(in_channels=32, num_classes=5, strides=STRIDES, num_grids=GRIDS, num_convs=3, channels=32, prior_prob=0.01)
    for conv in (head.category_out, *head.mask_out):
        assert conv.bias.unique().item() == pytest.approx(-math.log(99))
    for conv in (*head.category_tower, *head.mask_tower):
        assert conv.bias is None
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.mask_tower[0].in_channels == 34 and head.category_tower[0].in_channels == 32


@pytest.mark.parametrize("n", [0, 1, 7, 20])
@pytest.mark.parametrize("level", [0, 2])
def test_rows_equal_the_full_convolution_and_so_do_their_gradients(level: int, n: int) -> None:
    head = make_head(channels=8)
    cells = torch.randint(GRIDS[level] ** 2, (n,), generator=torch.Generator().manual_seed(n))
    weight = torch.randn(n, 2 * 8, 2 * 12, generator=torch.Generator().manual_seed(9))[
        :, : 16 if level == 0 else 8, : 24 if level == 0 else 12
    ]

    features = [f.requires_grad_() for f in head.rescale(pyramid(), (64, 96))]
    rows = head.mask_logits(head.mask_features(features, [level])[0][1], level, cells)
    (rows * weight).sum().backward()
    got = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
    got_feature = features[level].grad.clone()

    # As published: upsample the tower's output, convolve to all S^2 maps, then pick.
    head.zero_grad()
    features[level].grad = None
    tower = F.interpolate(head.mask_tower(features[level]), scale_factor=2, mode="bilinear", align_corners=False)
    full = head.mask_out[level](tower)[1, cells]
    (full * weight).sum().backward()
    torch.testing.assert_close(rows, full, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got_feature, features[level].grad, atol=1e-5, rtol=1e-4)
    for name, p in head.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, atol=1e-4, rtol=1e-4)
    assert f"mask_out.{level}.weight" in got and "mask_tower.0.weight" in got


def test_decoupled_masks_are_products_of_a_column_and_a_row_map() -> None:
    head = make_head(kind=DecoupledSOLOHead)
    level, s = 1, GRIDS[1]
    feature = head.mask_features(head.rescale(pyramid(), (64, 96)), [level])[0][1].detach().requires_grad_()
    masks = head.mask_logits(feature, level, torch.arange(s * s)).sigmoid()
    maps = head.mask_out[level](feature[None])
    maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)[0].sigmoid()
    assert maps.shape[0] == 2 * s and masks.shape[1:] == maps.shape[1:]
    for i in range(s):
        for j in range(s):
            torch.testing.assert_close(masks[i * s + j], maps[j] * maps[s + i], atol=1e-6, rtol=1e-5)
    (head.mask_logits(feature, level, torch.tensor([7])) * torch.randn_like(masks[7])).sum().backward()
    used = head.mask_out[level].weight.grad.flatten(1).any(1).nonzero().flatten().tolist()
    assert used == [7 % s, s + 7 // s]  # the maps of the cell's column and row alone
    assert head.mask_logits(feature, level, torch.empty(0, dtype=torch.int64)).shape == (0, *maps.shape[1:])


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_decoupled_logits_of_very_sure_maps_are_finite(size: float) -> None:
    head = make_head(kind=DecoupledSOLOHead)
    nn.init.zeros_(head.mask_out[0].weight)
    nn.init.constant_(head.mask_out[0].bias, size)
    logits = head.mask_logits(torch.zeros(8, 2, 2), 0, torch.tensor([0]))
    logits.sum().backward()
    assert logits.isfinite().all() and head.mask_out[0].bias.grad.isfinite().all()
    assert (logits > 0).all() == (size > 0)


def test_decoupled_masks_start_at_the_prior() -> None:
    head = DecoupledSOLOHead(in_channels=4, num_classes=3, strides=STRIDES, num_grids=GRIDS, channels=8, num_groups=4, prior_prob=0.01)
    nn.init.zeros_(head.mask_out[0].weight)
    assert head.mask_logits(torch.zeros(8, 2, 2), 0, torch.tensor([3])).sigmoid().mean().item() == pytest.approx(0.01)


def test_mask_features_of_some_levels() -> None:
    head = make_head()
    features = head.rescale(pyramid(), (64, 96))
    every = head.mask_features(features)
    assert [m.shape for m in every] == [(2, 8, *f.shape[-2:]) for f in features]
    some = head.mask_features(features, [3, 1])
    assert torch.equal(some[0], every[3]) and torch.equal(some[1], every[1])
    assert head.mask_features(features, []) == []


def test_channels_last_gives_the_same() -> None:
    head = make_head()
    features = head.rescale(pyramid(), (64, 96))
    plain = head.category_logits(features), head.mask_logits(head.mask_features(features)[0][0], 0, torch.arange(5))
    head = head.to(memory_format=torch.channels_last)
    features = [f.contiguous(memory_format=torch.channels_last) for f in features]
    torch.testing.assert_close(
        (head.category_logits(features), head.mask_logits(head.mask_features(features)[0][0], 0, torch.arange(5))), plain
    )


def test_from_config() -> None:
    cfg = load_config(overrides=["MODEL.SOLO.NUM_CLASSES", 7, "MODEL.SOLO.CHANNELS", 64, "MODEL.SOLO.NUM_CONVS", 2])
    shapes = {f"p{i}": ShapeSpec(channels=16, stride=2**i) for i in range(2, 7)}
    head = SOLOHead(cfg, shapes)
    assert head.num_cells == 3872 and head.category_out.out_channels == 7 and len(head.mask_tower) == 2
    assert head.mask_tower[0].in_channels == 18 and head.mask_tower[0].out_channels == 64
    shapes["p4"] = ShapeSpec(channels=8, stride=16)
    with pytest.raises(ValueError, match="same number"):
        SOLOHead(cfg, shapes)
