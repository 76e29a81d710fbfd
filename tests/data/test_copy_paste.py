"""Copy-paste: pixel by pixel against a painter, and that masks tell what can be seen."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from solotrack.data.copy_paste import CopyPaste

H, W = 40, 56


def scene(seed: int, count: int, height: int = H, width: int = W) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and ellipses that may overlap."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), np.uint8)
    for mask in masks:
        center, axes = rng.integers(6, (width - 6, height - 6)), rng.integers(3, 10, 2)
        cv2.ellipse(mask, center.tolist(), axes.tolist(), 0, 0, 360, 1, -1)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), masks


def painted(image, masks, donor, donor_masks, rng, max_instances, scale_range, min_visible) -> tuple:
    """One pixel after the other, with the same random numbers."""
    height, width = image.shape[:2]
    order = rng.permutation(len(donor_masks))[: rng.integers(1, max_instances, endpoint=True)]
    result, owner, layers = image.copy(), {}, []
    for index in order:
        ys, xs = np.nonzero(donor_masks[index])
        top, left, h, w = ys.min(), xs.min(), np.ptp(ys) + 1, np.ptp(xs) + 1
        scale = min(math.exp(rng.uniform(math.log(scale_range[0]), math.log(scale_range[1]))), height / h, width / w)
        new_h, new_w = max(1, round(scale * h)), max(1, round(scale * w))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        pixels = cv2.resize(donor[top : top + h, left : left + w], (new_w, new_h), interpolation=method)
        y0, x0 = rng.integers(0, height - new_h + 1), rng.integers(0, width - new_w + 1)
        layer = set()
        for y in range(new_h):
            for x in range(new_w):
                if donor_masks[index][top + y * h // new_h, left + x * w // new_w]:
                    result[y0 + y, x0 + x] = pixels[y, x]
                    owner[y0 + y, x0 + x] = len(layers)
                    layer.add((y0 + y, x0 + x))
        layers.append(layer)
    seen = {}
    for number, mask in enumerate(masks):
        whole = {(y, x) for y, x in np.argwhere(mask).tolist()}
        seen[number] = whole - owner.keys(), whole
    for number, (index, whole) in enumerate(zip(order.tolist(), layers, strict=True)):
        seen[len(masks) + index] = {place for place in whole if owner[place] == number}, whole
    return result, {i: left for i, (left, whole) in seen.items() if left and len(left) >= min_visible * len(whole)}


@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.3, 0.9), (1.1, 9.0)])
@pytest.mark.parametrize("seed", range(4))
def test_against_a_painter(seed: int, scale_range: tuple[float, float]) -> None:
    image, masks = scene(seed, seed)  # the first has no instance
    donor, donor_masks = scene(100 + seed, 5, 50, 44)
    inputs = [x.copy() for x in (image, masks, donor, donor_masks)]
    paste = CopyPaste(max_instances=4, scale_range=scale_range, min_visible=0.4)
    result, visible, kept = paste(image, masks, donor, donor_masks, np.random.default_rng(seed))
    expected, left = painted(image, masks, donor, donor_masks, np.random.default_rng(seed), 4, scale_range, 0.4)
    np.testing.assert_array_equal(result, expected)
    assert kept.tolist() == list(left) and visible.dtype == np.uint8 and visible.shape == (len(left), H, W)
    for mask, places in zip(visible, left.values(), strict=True):
        assert {(y, x) for y, x in np.argwhere(mask).tolist()} == places and mask.max() == 1
    for before, after in zip(inputs, (image, masks, donor, donor_masks), strict=True):
        np.testing.assert_array_equal(before, after)


def test_what_is_hidden_too_much_has_no_mask() -> None:
    image, donor = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 200, np.uint8)
    small, large = np.zeros((1, 20, 20), np.uint8), np.ones((1, 20, 20), np.uint8)
    small[0, 4:8, 4:8] = 1
    for share in (0.0, 0.5):  # the large one covers everything
        result, visible, kept = CopyPaste(1, (1.0, 1.0), share)(image, small, donor, large, np.random.default_rng(0))
        assert kept.tolist() == [1] and visible.all() and (result == 200).all()
    large[0, 4:8, 4:7] = 0  # leaves 12 of the 16 pixels of the small one to be seen
    for share, expected in ((0.7, [0, 1]), (0.8, [1])):
        _, visible, kept = CopyPaste(1, (1.0, 1.0), share)(image, small, donor, large, np.random.default_rng(0))
        assert kept.tolist() == expected and visible.sum(axis=(1, 2)).tolist() == [12, 388][-len(expected) :]


def test_numbers_sizes_and_places() -> None:
    image, none = np.zeros((H, W, 3), np.uint8), np.zeros((0, H, W), np.uint8)
    donor, mask = np.full((H, W, 3), 255, np.uint8), np.zeros((3, H, W), np.uint8)
    mask[:, 10:20, 30:40] = 1
    paste, rng = CopyPaste(2, (0.5, 2.0), 0.0), np.random.default_rng(0)
    counts, chosen, logs, corners = [], [], [], []
    for _ in range(400):
        _, visible, kept = paste(image, none, donor, mask, rng)
        counts.append(len(kept))
        chosen += kept.tolist()
        if len(kept) == 1:
            rows, cols = np.flatnonzero(visible[0].any(axis=1)), np.flatnonzero(visible[0].any(axis=0))
            logs.append(math.log2(len(rows) / 10))
            corners.append((rows[0] / (H - len(rows)), cols[0] / (W - len(cols))))
    assert set(counts) == {1, 2} and 0.4 < np.mean(np.array(counts) == 1) < 0.62
    assert np.bincount(chosen).min() > 0.85 * len(chosen) / 3
    assert abs(np.mean(logs)) < 0.1 and min(logs) < -0.9 and max(logs) > 0.9
    assert np.abs(np.mean(corners, axis=0) - 0.5).max() < 0.06 and np.min(corners) < 0.03 and np.max(corners) > 0.97


def test_nothing_to_paste_and_seeds() -> None:
    image, masks = scene(3, 2)
    result, visible, kept = CopyPaste(3, (1.0, 1.0), 0.3)(image, masks, image, masks[:0], np.random.default_rng(0))
    np.testing.assert_array_equal(result, image)
    np.testing.assert_array_equal(visible, masks)
    assert kept.tolist() == [0, 1]
    donor, donor_masks = scene(4, 4)
    one, again, other = (CopyPaste(3, (0.6, 1.5), 0.3)(image, masks, donor, donor_masks, np.random.default_rng(s))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
