from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Instances
from torch.nn import functional as F

from solotrack.modeling.solo import SOLOHead, assign_grid_targets, category_loss, dice_loss, mask_loss

GRIDS, STRIDES = (6, 5, 4), (8, 8, 16)
RANGES = ((1, 16), (8, 32), (16, 64))


def make_head() -> SOLOHead:
    torch.manual_seed(0)
    head = SOLOHead(in_channels=4, num_classes=3, strides=STRIDES, num_grids=GRIDS, num_convs=1, channels=8, num_groups=4)
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return head


def squares(*boxes: tuple[int, int, int]) -> Instances:
    masks = np.zeros((len(boxes), 64, 64), bool)
    for mask, (x, y, side) in zip(masks, boxes, strict=True):
        mask[y : y + side, x : x + side] = True
    instances = Instances((64, 64))
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.arange(len(boxes)) % 3
    return instances


def features() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(2, 4, 64 // s, 64 // s, generator=g) for s in STRIDES]


def test_focal_loss_by_hand() -> None:
    classes = torch.tensor([[1, 2]])  # one positive of class 1 of 2, one background
    zero = category_loss(torch.zeros(1, 2, 2), classes)
    assert zero.item() == pytest.approx((0.25 * 0.25 + 3 * 0.75 * 0.25) * math.log(2) / 2)
    logits = torch.tensor([[[-1.0, 2.0], [0.5, -3.0]]])
    p = [[1 / (1 + math.exp(-v)) for v in row] for row in logits[0].tolist()]
    positive = 0.25 * (1 - p[0][1]) ** 2 * -math.log(p[0][1])
    negative = sum(0.75 * v**2 * -math.log(1 - v) for v in (p[0][0], p[1][0], p[1][1]))
    assert category_loss(logits, classes).item() == pytest.approx((positive + negative) / 2, rel=1e-5)
    other = category_loss(logits, classes, alpha=0.5, gamma=0.0)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), reduction="sum")
    assert other.item() == pytest.approx(0.5 * cross_entropy.item() / 2, rel=1e-5)


def test_focal_loss_without_a_positive_cell() -> None:
    logits = torch.zeros(2, 3, 4, requires_grad=True)
    loss = category_loss(logits, torch.full((2, 3), 4))
    loss.backward()
    assert loss.item() == pytest.approx(24 * 0.75 * 0.25 * math.log(2))
    assert (logits.grad > 0).all()


def test_dice_by_hand() -> None:
    big = 50.0
    logits = torch.tensor([[[big, -big], [-big, -big]], [[0.0, 0.0], [0.0, 0.0]], [[-big, -big], [-big, -big]]])
    targets = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.uint8)
    wanted = [1 - 2 * 1 / (1 + 0.001 + 2 + 0.001), 1 - 2 * 0.5 / (4 * 0.25 + 0.001 + 1 + 0.001), 1.0]
    np.testing.assert_allclose(dice_loss(logits, targets), wanted, rtol=1e-6)


def test_losses_are_float32_under_autocast() -> None:
    logits = torch.randn(2, 30, 30, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = (torch.rand(2, 30, 30, generator=torch.Generator().manual_seed(1)) < 0.3).to(torch.uint8)
    classes = torch.zeros(2, 30, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dice, focal = dice_loss(logits, targets), category_loss(logits, classes)
    assert torch.equal(dice, dice_loss(logits.float(), targets)) and dice.dtype == torch.float32
    assert torch.equal(focal, category_loss(logits.float(), classes)) and focal.dtype == torch.float32


def test_mask_loss_is_the_mean_over_positive_cells() -> None:
    head, maps = make_head(), features()
    instances = [squares((3, 5, 10), (30, 20, 20)), squares((8, 30, 30))]
    targets = assign_grid_targets(instances, (64, 64), GRIDS, STRIDES, RANGES, 0.5, 3)
    cells = []
    for image in range(2):
        for level, s in enumerate(GRIDS):
            tower = F.interpolate(head.mask_tower(maps[level][image : image + 1]), scale_factor=2, mode="bilinear", align_corners=False)
            full = head.mask_out[level](tower)[0].sigmoid()  # (S^2, h, w), as published
            for cell in range(s * s):
                m = targets.instance_index[image, targets.level_offsets[level] + cell].item()
                if m >= 0:
                    q = targets.masks[image][level][m].float()
                    cells.append(1 - 2 * (full[cell] * q).sum() / ((full[cell] ** 2).sum() + (q**2).sum() + 0.002))
    assert len(cells) > 5
    torch.testing.assert_close(mask_loss(head, maps, targets), torch.stack(cells).mean())


@pytest.mark.parametrize(
    "instances",
    [[squares(), squares()], [squares((3, 3, 5)), squares()]],
    ids=["no instance", "positive cells on the first level only"],
)
def test_every_parameter_gets_a_gradient(instances: list[Instances]) -> None:
    head, maps = make_head(), features()
    targets = assign_grid_targets(instances, (64, 64), GRIDS, STRIDES, RANGES, 0.2, 3)
    loss = mask_loss(head, maps, targets)
    (loss + category_loss(head.category_logits(maps), targets.classes)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert (loss > 0) == (len(instances[0]) > 0)
    assert not head.mask_out[1].weight.grad.any() and not head.mask_out[2].bias.grad.any()
    assert bool(head.mask_tower[0].weight.grad.any()) == (len(instances[0]) > 0)


def test_mask_branch_runs_on_levels_with_positive_cells_only() -> None:
    head = make_head()
    sizes = []
    head.mask_tower.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    targets = assign_grid_targets([squares((2, 2, 40)), squares()], (64, 64), GRIDS, STRIDES, RANGES, 0.2, 3)
    mask_loss(head, features(), targets)
    assert sizes == [64 // 16]


def test_training_under_autocast() -> None:
    head, maps = make_head(), features()
    targets = assign_grid_targets([squares((3, 5, 10)), squares((8, 30, 30))], (64, 64), GRIDS, STRIDES, RANGES, 0.5, 3)

    def losses() -> torch.Tensor:
        return torch.stack([category_loss(head.category_logits(maps), targets.classes), mask_loss(head, maps, targets)])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = losses()
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, losses(), rtol=0.05, atol=0.05)
    low.sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
