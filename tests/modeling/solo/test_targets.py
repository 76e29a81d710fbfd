from __future__ import annotations

import math
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from solotrack.modeling.solo.targets import GridTargets, assign_grid_targets, count_unassigned, downscale_masks

GRIDS = (12, 10, 8, 6, 4)
STRIDES = (8, 8, 16, 32, 32)
RANGES = ((1, 24), (12, 48), (24, 96), (48, 192), (96, 512))
CLASSES = 7


def to_instances(masks: np.ndarray, labels: list[int] | np.ndarray) -> Instances:
    """Masks (M, H, W) with their tight boxes."""
    instances = Instances(masks.shape[1:])
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.as_tensor(labels, dtype=torch.int64)
    return instances


def ellipses(rng: np.random.Generator, n: int, height: int, width: int, largest: float = 60) -> np.ndarray:
    """Ellipses, some cut by the border, some with a slice missing so that centre and box centre differ, some empty."""
    ys, xs = np.mgrid[:height, :width]
    masks = np.zeros((n, height, width), bool)
    for mask in masks:
        cx, cy, a, b = rng.uniform(0, width), rng.uniform(0, height), *rng.uniform(1, largest, 2)
        mask[:] = ((xs - cx) / a) ** 2 + ((ys - cy) / b) ** 2 <= 1
        if rng.random() < 0.4:
            mask &= (xs > cx) | (ys > cy)
        if rng.random() < 0.05:
            mask[:] = False
    return masks


def assign(instances: list[Instances], padded_size: tuple[int, int], sigma: float = 0.2) -> GridTargets:
    return assign_grid_targets(instances, padded_size, GRIDS, STRIDES, RANGES, sigma, CLASSES)


def slow_targets(masks: np.ndarray, labels: np.ndarray, padded_size: tuple[int, int], sigma: Fraction) -> list[dict]:
    """METHOD 1.3 cell by cell in exact arithmetic: for each level {cell: (class, instance, mask)}."""
    height, width = padded_size
    levels = []
    for s, stride, (low, high) in zip(GRIDS, STRIDES, RANGES, strict=True):
        cells = {}
        for m, mask in enumerate(masks):
            ys, xs = (list(map(int, v)) for v in np.nonzero(mask))
            if not xs:
                continue
            w, h = max(xs) + 1 - min(xs), max(ys) + 1 - min(ys)
            if not low <= math.sqrt(w * h) <= high:
                continue
            cx, cy = Fraction(sum(xs), len(xs)), Fraction(sum(ys), len(ys))
            column, row = math.floor(cx / width * s), math.floor(cy / height * s)
            left, right = math.floor((cx - sigma * w / 2) / width * s), math.floor((cx + sigma * w / 2) / width * s)
            top, bottom = math.floor((cy - sigma * h / 2) / height * s), math.floor((cy + sigma * h / 2) / height * s)
            canvas = np.zeros(padded_size, np.uint8)
            canvas[: mask.shape[0], : mask.shape[1]] = mask
            f = stride // 2
            small = cv2.resize(canvas, (width // f, height // f), interpolation=cv2.INTER_LINEAR)
            for i in range(max(top, row - 1, 0), min(bottom, row + 1, s - 1) + 1):
                for j in range(max(left, column - 1, 0), min(right, column + 1, s - 1) + 1):
                    cells[i * s + j] = (labels[m], m, small)
        levels.append(cells)
    return levels


def check(targets: GridTargets, image: int, reference: list[dict]) -> int:
    """Compare one image with the reference; returns the number of positive cells."""
    seen = 0
    positives = {p.level: p for p in targets.positives() if p.image == image}
    for level, cells in enumerate(reference):
        first, last = targets.level_offsets[level : level + 2]
        classes, index = targets.classes[image, first:last].tolist(), targets.instance_index[image, first:last].tolist()
        for cell in range(last - first):
            label, m, _ = cells.get(cell, (CLASSES, -1, None))
            assert (classes[cell], index[cell]) == (label, m), f"level {level}, cell {cell}"
        assert (level in positives) == bool(cells)
        if cells:
            p = positives[level]
            assert p.cells.tolist() == sorted(cells)
            assert p.instances.tolist() == [cells[c][1] for c in sorted(cells)]
            np.testing.assert_array_equal(targets.mask_targets(p), [cells[c][2] for c in sorted(cells)])
        seen += len(cells)
    return seen


def test_200_random_images_against_the_slow_rule() -> None:
    rng = np.random.default_rng(0)
    positives = 0
    for _ in range(100):  # batches of two images of their own sizes
        sizes = rng.integers(40, 129, (2, 2))
        padded = tuple(int(-(-side // 32) * 32) for side in sizes.max(0))
        masks = [ellipses(rng, int(rng.integers(0, 7)), *size) for size in sizes]
        labels = [rng.integers(0, CLASSES, len(m)) for m in masks]
        targets = assign([to_instances(m, c) for m, c in zip(masks, labels, strict=True)], padded)
        positives += sum(check(targets, i, slow_targets(masks[i], labels[i], padded, Fraction(1, 5))) for i in range(2))
    assert positives > 2000


@pytest.mark.parametrize("sigma", [Fraction(1, 100), Fraction(1)])  # one cell; 3x3 wherever the instance is large enough
def test_small_and_large_positive_regions(sigma: Fraction) -> None:
    rng = np.random.default_rng(1)
    masks = ellipses(rng, 5, 96, 128)
    labels = np.arange(5)
    check(assign([to_instances(masks, labels)], (96, 128), float(sigma)), 0, slow_targets(masks, labels, (96, 128), sigma))


def square(x: int, y: int, side: int, height: int = 96, width: int = 96) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_grid_spans_the_padded_image() -> None:
    instances = to_instances(square(80, 10, 10)[None], [1])
    small = (assign([instances], (96, 96)).classes < CLASSES).nonzero()[0, 1].item()
    large = (assign([instances], (96, 192)).classes < CLASSES).nonzero()[0, 1].item()
    assert small % 12 == 84 * 12 // 96 and large % 12 == 84 * 12 // 192


def test_scale_ranges_include_both_ends() -> None:
    for side, levels in ((12, [0, 1]), (11, [0]), (24, [0, 1, 2]), (25, [1, 2]), (48, [1, 2, 3]), (49, [2, 3])):
        targets = assign([to_instances(square(2, 2, side)[None], [0])], (96, 96))
        assert targets.in_range[0][0].nonzero().squeeze(1).tolist() == levels == [p.level for p in targets.positives()]


def test_later_instances_take_over() -> None:
    masks = np.stack([square(40, 40, 14), square(40, 40, 15), square(4, 4, 11), square(70, 70, 0), square(0, 0, 0)])
    masks[3, 0, 0] = True  # 1 pixel: scale 1, the smallest taken
    targets = assign([to_instances(masks, [1, 2, 3, 4, 5])], (96, 96))
    assert set(targets.instance_index.unique().tolist()) == {-1, 1, 2, 3}
    assert count_unassigned(targets) == {"instances": 5, "empty": 1, "out_of_range": 0, "overwritten": 1}
    flipped = assign([to_instances(masks[[1, 0]], [2, 1])], (96, 96))
    assert flipped.instance_index.max() == 1 and (flipped.classes[flipped.instance_index == 1] == 1).all()


def test_out_of_every_range() -> None:
    instances = to_instances(np.stack([square(0, 0, 64), square(10, 10, 5)]), [0, 1])
    targets = assign_grid_targets([instances, instances[:0]], (96, 96), GRIDS[:1], STRIDES[:1], RANGES[:1], 0.2, CLASSES)
    assert count_unassigned(targets) == {"instances": 2, "empty": 0, "out_of_range": 1, "overwritten": 0}


def test_images_without_instances() -> None:
    none = to_instances(np.zeros((0, 64, 80), bool), [])
    some = to_instances(square(10, 10, 20, 64, 80)[None], [2])
    targets = assign([none, none], (64, 96))
    assert (targets.classes == CLASSES).all() and (targets.instance_index == -1).all() and targets.positives() == []
    assert targets.classes.shape == (2, sum(s * s for s in GRIDS))
    assert count_unassigned(targets)["instances"] == 0
    mixed = assign([none, some, none], (64, 96))
    assert {p.image for p in mixed.positives()} == {1}
    assert torch.equal(mixed.classes[1], assign([some], (64, 96)).classes[0])


def test_an_instance_without_pixels_takes_no_cell_whatever_its_box() -> None:
    instances = to_instances(np.zeros((1, 96, 96), bool), [1])
    instances.gt_boxes.tensor[0] = torch.tensor([10.0, 10, 30, 30])
    targets = assign([instances], (96, 96))
    assert targets.positives() == []
    assert count_unassigned(targets) == {"instances": 1, "empty": 1, "out_of_range": 0, "overwritten": 0}


def test_500_instances() -> None:
    rng = np.random.default_rng(2)
    masks = ellipses(rng, 500, 96, 128, largest=20)
    labels = rng.integers(0, CLASSES, 500)
    targets = assign([to_instances(masks, labels)], (96, 128))
    assert check(targets, 0, slow_targets(masks, labels, (96, 128), Fraction(1, 5))) > 200
    counts = count_unassigned(targets)
    trained = len(set(targets.instance_index[0].tolist()) - {-1})
    assert (
        counts["overwritten"] > 0
        and counts["instances"] == 500 == trained + counts["empty"] + counts["out_of_range"] + counts["overwritten"]
    )


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8, 16])
def test_downscaling_is_opencvs(factor: int) -> None:
    rng = np.random.default_rng(factor)
    masks = rng.random((4, 96, 144)) < 0.5
    small = downscale_masks(torch.from_numpy(masks), factor, (96 // factor, 144 // factor))
    for mask, got in zip(masks, small, strict=True):
        wanted = cv2.resize(mask.astype(np.uint8), (144 // factor, 96 // factor), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(got, wanted)


def test_downscaling_pads_right_and_below() -> None:
    masks = np.random.default_rng(0).random((3, 77, 50)) < 0.5
    padded = np.zeros((3, 96, 64), bool)
    padded[:, :77, :50] = masks
    for factor in (4, 8, 16):
        size = (96 // factor, 64 // factor)
        assert torch.equal(downscale_masks(torch.from_numpy(masks), factor, size), downscale_masks(torch.from_numpy(padded), factor, size))


def test_errors_name_the_remedy() -> None:
    polygons = Instances((64, 64))
    polygons.gt_masks = PolygonMasks([[np.array([0.0, 0, 9, 0, 9, 9])]])
    polygons.gt_boxes, polygons.gt_classes = Boxes(torch.tensor([[0.0, 0, 9, 9]])), torch.tensor([0])
    with pytest.raises(TypeError, match=r"INPUT\.MASK_FORMAT to 'bitmask'"):
        assign([polygons], (64, 64))
    with pytest.raises(ValueError, match="96x96 pixels do not fit"):
        assign([to_instances(square(1, 1, 9)[None], [0])], (64, 96))
    with pytest.raises(ValueError, match="even"):
        assign_grid_targets([to_instances(square(1, 1, 9)[None], [0])], (96, 96), [4], [3], [[1, 99]], 0.2, CLASSES)
