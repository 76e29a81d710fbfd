"""Displaced pairs: the same instances, pixel for pixel, at places that tell nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from solotrack.data.scatter import scatter_instances

H, W = 48, 64


def scene(seed: int, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and blobs that do not overlap; every pixel of blob k is of the colour range 50 k to 50 k + 49."""
    rng = np.random.default_rng(seed)
    image = rng.integers(200, 256, (H, W, 3), dtype=np.uint8)
    masks = np.zeros((count, H, W), dtype=bool)
    free = np.ones((H, W), dtype=bool)
    for k, mask in enumerate(masks):
        y, x, ry, rx = rng.integers(6, H - 6), rng.integers(6, W - 6), *rng.integers(3, 7, 2)
        rows, cols = np.ogrid[:H, :W]
        mask[:] = (((rows - y) / ry) ** 2 + ((cols - x) / rx) ** 2 <= 1) & free
        free &= ~mask
        image[mask] = rng.integers(50 * k, 50 * k + 50, (mask.sum(), 3))
    return image, masks


def shape_of(mask: np.ndarray) -> np.ndarray:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


@pytest.mark.parametrize("seed", range(6))
def test_instances_are_moved_whole(seed: int) -> None:
    image, masks = scene(seed)
    before = image.copy(), masks.copy()
    moved, moved_masks = scatter_instances(image, masks, np.random.default_rng(seed))
    assert moved.shape == image.shape and moved.dtype == np.uint8 and moved_masks.shape == masks.shape and moved_masks.dtype == bool
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(masks, before[1])
    assert moved_masks.sum(axis=0).max() <= 1, "a pixel shows one instance"
    for k, (mask, new) in enumerate(zip(masks, moved_masks, strict=True)):
        if new.sum() == mask.sum():  # nothing hides it: same shape, same pixels in the same order
            np.testing.assert_array_equal(shape_of(mask), shape_of(new))
            np.testing.assert_array_equal(image[mask], moved[new])
        assert new.sum() <= mask.sum()
        assert (moved[new] // 50 == k).all(), "each pixel of a mask is of its own instance"


def test_what_an_instance_leaves_behind_is_painted_over() -> None:
    image, masks = scene(0, count=1)
    moved, moved_masks = scatter_instances(image, masks, np.random.default_rng(3))
    left = masks[0] & ~moved_masks[0]
    assert left.any()
    assert (moved[left] >= 150).all(), "background colours where the blob (below 50) was"
    halo = ndimage.binary_dilation(masks[0], np.ones((5, 5))) | moved_masks[0]
    np.testing.assert_array_equal(moved[~halo], image[~halo])


def test_places_are_uniform_and_independent_of_the_origin() -> None:
    """The centre of a small instance in the middle: spread over the whole frame, not around where it was."""
    image = np.full((H, W, 3), 128, np.uint8)
    mask = np.zeros((1, H, W), dtype=bool)
    mask[0, 22:26, 30:34] = True
    rng = np.random.default_rng(0)
    corners = np.array([np.argwhere(scatter_instances(image, mask, rng)[1][0])[0] for _ in range(400)])
    extent = np.array([H - 4, W - 4])
    assert (corners >= 0).all() and (corners <= extent).all()
    assert (corners.min(axis=0) <= 2).all() and (corners.max(axis=0) >= extent - 2).all()
    share = [np.histogram(corners[:, axis], bins=4, range=(0, extent[axis] + 1))[0] / 400 for axis in (0, 1)]
    assert np.abs(np.array(share) - 0.25).max() < 0.08  # more than three standard deviations


def test_of_several_places_the_one_that_hides_least_is_taken() -> None:
    hidden = []
    for seed in range(30):
        image, masks = scene(seed)
        _, moved_masks = scatter_instances(image, masks, np.random.default_rng(seed))
        hidden.append(1 - moved_masks.sum() / masks.sum())
    assert np.mean(hidden) < 0.01, "there is room for all of them"


def test_seeds() -> None:
    image, masks = scene(1)
    one, again, other = (scatter_instances(image, masks, np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one[0], again[0])
    np.testing.assert_array_equal(one[1], again[1])
    assert (one[1] != other[1]).any()


def test_edge_cases() -> None:
    image, masks = scene(2)
    moved, moved_masks = scatter_instances(image, masks[:0], np.random.default_rng(0))
    np.testing.assert_array_equal(moved, image)
    assert moved_masks.shape == (0, H, W)

    with_empty = np.concatenate([masks[:1], np.zeros((1, H, W), dtype=bool), masks[1:2]])
    _, moved_masks = scatter_instances(image, with_empty, np.random.default_rng(0))
    assert [mask.any() for mask in moved_masks] == [True, False, True]

    whole = np.ones((1, H, W), dtype=bool)  # fits in one place only
    moved, moved_masks = scatter_instances(image, whole, np.random.default_rng(0))
    np.testing.assert_array_equal(moved, image)
    assert moved_masks.all()

    overlapping = np.stack([masks[0], masks[0]])  # annotations may overlap
    _, moved_masks = scatter_instances(image, overlapping, np.random.default_rng(0))
    assert moved_masks.any(axis=(1, 2)).all()
