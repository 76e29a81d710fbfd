from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from solotrack.ops import masks as ops


def random_masks(n: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Masks of every density, the first empty, the second full."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n, height, width)) < rng.random((n, 1, 1)) ** 4
    masks[0], masks[1] = False, True
    return torch.from_numpy(masks)


@pytest.mark.parametrize(("height", "width"), [(7, 11), (40, 64), (300, 520)])  # the last passes a byte both ways
def test_areas_boxes_and_centers_of_each_mask(height: int, width: int) -> None:
    masks = random_masks(12, height, width, seed=height)
    masks[2] = False
    masks[2, height - 1, width - 1] = True
    areas, boxes, centers = ops.mask_areas(masks), ops.masks_to_boxes(masks), ops.centers_of_mass(masks)
    assert areas.dtype == boxes.dtype == centers.dtype == torch.float32
    for mask, area, box, center in zip(masks.numpy(), areas, boxes, centers, strict=True):
        ys, xs = np.nonzero(mask)
        assert area == len(ys)
        if len(ys) == 0:
            assert box.tolist() == [0, 0, 0, 0] and center.tolist() == [0, 0]
        else:
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_allclose(center, [xs.mean(), ys.mean()], rtol=1e-7)


def test_no_masks() -> None:
    none, some = torch.zeros(0, 5, 6, dtype=torch.bool), torch.ones(3, 5, 6, dtype=torch.bool)
    assert ops.mask_areas(none).shape == (0,)
    assert ops.masks_to_boxes(none).shape == (0, 4)
    assert ops.centers_of_mass(none).shape == (0, 2)
    assert ops.mask_iou(none, some).shape == (0, 3)
    assert ops.mask_iou(some, none).shape == (3, 0)
    assert ops.box_iou(torch.zeros(0, 4), torch.ones(2, 4)).shape == (0, 2)


def test_bytes_are_taken_as_masks() -> None:
    masks = random_masks(5, 9, 13, seed=0)
    scaled = masks.to(torch.uint8) * 255
    assert torch.equal(ops.mask_areas(scaled), ops.mask_areas(masks))
    assert torch.equal(ops.mask_iou(scaled, masks), ops.mask_iou(masks, masks))


@pytest.mark.parametrize("chunk", [1 << 26, 1])  # the second goes pixel block by pixel block
def test_mask_iou(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_CHUNK_BYTES", chunk)
    a, b = random_masks(6, 50, 61, seed=1), random_masks(9, 50, 61, seed=2)
    a[3] = False
    iou, inter = ops.mask_iou(a, b), ops.mask_intersections(a, b)
    for i in range(6):
        for j in range(9):
            common, union = (a[i] & b[j]).sum().item(), (a[i] | b[j]).sum().item()
            assert inter[i, j] == common
            assert iou[i, j] == np.float32(common / union if union else 0)
    assert torch.equal(ops.mask_iou(a, a), ops.mask_iou(a, a.clone()))


def test_mask_iou_is_exact_under_autocast() -> None:
    a = random_masks(6, 64, 64, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ops.mask_iou(a, a)
    assert inside.dtype == torch.float32 and torch.equal(inside, ops.mask_iou(a, a))


def test_mask_iou_wants_one_size() -> None:
    with pytest.raises(ValueError, match="resize"):
        ops.mask_iou(torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 5, dtype=torch.bool))


@pytest.mark.parametrize("plus_one", [False, True])
def test_box_iou(plus_one: bool) -> None:
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 20, (2, 10, 4))
    a, b = (np.concatenate([np.minimum(c[:, :2], c[:, 2:]), np.maximum(c[:, :2], c[:, 2:])], axis=1) for c in corners)
    iou = ops.box_iou(torch.from_numpy(a), torch.from_numpy(b), plus_one=plus_one)
    for i in range(10):
        for j in range(10):  # count pixels
            canvas = np.zeros((2, 22, 22), bool)
            for k, (x1, y1, x2, y2) in enumerate((a[i], b[j])):
                canvas[k, y1 : y2 + plus_one, x1 : x2 + plus_one] = True
            union = canvas.any(0).sum()
            assert iou[i, j] == pytest.approx(canvas.all(0).sum() / union if union else 0, abs=1e-6)
    exact = ops.box_iou(torch.from_numpy(a).double(), torch.from_numpy(b).double(), plus_one=plus_one)
    assert iou.dtype == torch.float32 and exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), iou)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (10, 14), (15, 7), (3, 20), (1, 1)])
def test_resize_mask(height: int, width: int) -> None:
    mask = np.random.default_rng(0).integers(0, 2, (5, 7), dtype=np.uint8)
    expected = [[mask[int((y + 0.5) * 5 / height), int((x + 0.5) * 7 / width)] for x in range(width)] for y in range(height)]
    np.testing.assert_array_equal(ops.resize_mask(mask, height, width), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_small_parts_are_dropped(share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    soft = torch.rand(6, 20, 30, generator=generator)
    soft[0], soft[1] = 0.2, 0.9
    got = ops.drop_small_parts(soft, 0.7, share)
    for mask, result in zip(soft, got, strict=True):
        labels, count = ndimage.label(mask.numpy() > 0.7, structure=np.ones((3, 3)))  # corners connect
        areas = [int((labels == part).sum()) for part in range(1, count + 1)]
        expected = mask.numpy().copy()
        for part, area in enumerate(areas, start=1):
            if area < share * max(areas):
                expected[labels == part] = 0
        np.testing.assert_array_equal(result.numpy(), expected)
    assert ops.drop_small_parts(soft[:0], 0.7, share).shape == (0, 20, 30)
