"""Masks of SipMask-VIS and the reading of maps, against loops over pixels and points."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes

from solotrack.modeling.sipmask.masks import assemble_masks, box_mask_loss, quarter_logits, read_points


def at(values: torch.Tensor, x: float, y: float, stride: int) -> torch.Tensor:
    """Bilinear value (K,) of a map (K, h, w) at a point in pixels, cell by cell."""
    h, w = values.shape[1:]
    column, row = (min(max(v / stride - 0.5, 0.0), size - 1.0) for v, size in ((x, w), (y, h)))
    total = torch.zeros(len(values), dtype=torch.float64)
    for i in range(h):
        for j in range(w):
            total += values[:, i, j].double() * max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(column - j))
    return total


def logit(basis: torch.Tensor, coefficients: torch.Tensor, box: list[float], x: float, y: float, stride: int) -> float:
    """Of one pixel centre in a box (4,), by its quarter's coefficients (4, K)."""
    x1, y1, x2, y2 = box
    quarter = 2 * int(y >= (y1 + y2) / 2) + int(x >= (x1 + x2) / 2)
    return float(coefficients[quarter].double() @ at(basis, x, y, stride))


def test_assembled_masks_equal_a_loop_over_pixels() -> None:
    torch.manual_seed(0)
    stride, basis, coefficients = 4, torch.randn(3, 4, 5), torch.randn(5, 4, 3)
    boxes = [
        [2.0, 1.0, 13.0, 15.0],
        [0.0, 0.0, 20.0, 16.0],
        [5.3, 4.7, 18.6, 9.2],
        [7.6, 3.6, 8.4, 4.4],
        [3.5, 2.5, 9.5, 6.5],
    ]  # the last has sides at pixel centres
    masks = assemble_masks(basis, coefficients, torch.tensor(boxes), stride)
    assert masks.shape == (5, 16, 20)
    expected = torch.zeros(5, 16, 20)
    for mask, box, own in zip(expected, boxes, coefficients, strict=True):
        x1, y1, x2, y2 = box
        for i in range(16):
            for j in range(20):
                x, y = j + 0.5, i + 0.5
                if x1 <= x < x2 and y1 <= y < y2:
                    mask[i, j] = 1 / (1 + math.exp(-logit(basis, own, box, x, y, stride)))
    torch.testing.assert_close(masks, expected)
    assert (expected[2] > 0).any() and not expected[3].any(), "a box between pixel centres has no pixel"
    assert assemble_masks(basis, coefficients[:0], torch.zeros(0, 4), stride).shape == (0, 16, 20)


def test_each_quarter_has_its_own_coefficients() -> None:
    coefficients = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    quarters = quarter_logits(torch.ones(1, 1, 4, 4), coefficients)
    expected = [[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert quarters.tolist() == [expected]
    masks = assemble_masks(torch.ones(1, 2, 2), coefficients, torch.tensor([[0.0, 0, 4, 4]]), 2)
    torch.testing.assert_close(masks, torch.tensor([expected]).sigmoid())


def truth() -> tuple[list[Boxes], list[BitMasks]]:
    """Of three images with two, no and one object."""
    masks = torch.zeros(3, 16, 24, dtype=torch.bool)
    masks[0, 2:10, 4:20] = masks[1, 8:16, 0:8] = masks[2, 4:12, 8:16] = True
    masks[0, 2:6, 4:12] = False
    boxes = torch.tensor([[4.0, 2, 20, 10], [0, 8, 8, 16], [8, 4, 16, 12]])
    return [Boxes(boxes[:2]), Boxes(boxes[:0]), Boxes(boxes[2:])], [BitMasks(masks[:2]), BitMasks(masks[:0]), BitMasks(masks[2:])]


def test_the_loss_equals_a_loop_over_points() -> None:
    """Several locations find one object; the logit of a point is the one that tracking would give the pixel there."""
    torch.manual_seed(1)
    stride, resolution, basis = 4, 4, torch.randn(3, 2, 4, 6)
    index = torch.tensor([1, 0, 1, 2])
    image = [0, 0, 0, 2]
    coefficients = torch.randn(4, 4, 2)
    boxes, masks = truth()
    loss = box_mask_loss(basis, coefficients, index, boxes, masks, stride, resolution)
    all_boxes, all_masks = torch.cat([b.tensor for b in boxes]), torch.cat([m.tensor for m in masks])
    terms = []
    for own, n, i in zip(coefficients, index.tolist(), image, strict=True):
        x1, y1, x2, y2 = all_boxes[n].tolist()
        for row in range(resolution):
            for column in range(resolution):
                x, y = x1 + (column + 0.5) / resolution * (x2 - x1), y1 + (row + 0.5) / resolution * (y2 - y1)
                value = logit(basis[i], own, [x1, y1, x2, y2], x, y, stride)
                inside = bool(all_masks[n, int(y), int(x)])
                terms.append(math.log(1 + math.exp(-value if inside else value)))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_no_location_is_no_loss_but_gradients() -> None:
    basis, coefficients = torch.randn(3, 2, 4, 6, requires_grad=True), torch.randn(0, 4, 2, requires_grad=True)
    loss = box_mask_loss(basis, coefficients, torch.zeros(0, dtype=torch.int64), *truth(), 4, 4)
    loss.backward()
    assert loss.item() == 0 and basis.grad is not None and coefficients.grad is not None


def test_points_are_read_bilinearly() -> None:
    torch.manual_seed(2)
    maps = torch.randn(2, 3, 4, 5)
    image = torch.tensor([0, 1, 1, 0, 1, 0])
    points = torch.tensor([[10.0, 6.0], [2.0, 2.0], [19.9, 15.9], [0.0, 9.3], [25.0, -3.0], [17.1, 3.2]])  # one is outside
    expected = torch.stack([at(maps[i], *point.tolist(), 4) for i, point in zip(image.tolist(), points, strict=True)]).float()
    torch.testing.assert_close(read_points(maps, image, points, 4), expected)
    assert torch.equal(expected[1], maps[1, :, 0, 0]), "the centre of the first cell"
    assert read_points(maps, image[:0], points[:0], 4).shape == (0, 3)


def test_reading_has_gradients_at_the_four_cells() -> None:
    maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
    read_points(maps, torch.tensor([0]), torch.tensor([[7.0, 5.0]]), 4).sum().backward()
    expected = torch.zeros(4, 4)
    expected[0:2, 1:3] = torch.tensor([[0.25], [0.75]]) * torch.tensor([0.75, 0.25])
    torch.testing.assert_close(maps.grad[0, 0], expected)
