from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from detectron2.data import transforms as T

from solotrack.data.views import ColorJitter, ColorTransform, RandomSimilarity, RandomView, SimilarityTransform

H, W = 40, 56
STRONG = {"shift": 0.35, "scale_range": (0.6, 1.5), "rotation": 25.0, "flip": 0.5}


@pytest.fixture
def seeded() -> Callable[[int], None]:
    """Detectron2's transforms draw from NumPy's global state."""
    before = np.random.get_state()  # noqa: NPY002
    yield np.random.seed
    np.random.set_state(before)  # noqa: NPY002


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A smooth image and three masks, two of which overlap."""
    y, x = np.mgrid[:H, :W].astype(np.float64)
    image = np.stack([2 * x + y, 255 - 3 * x, 100 + 50 * np.sin(x / 7) * np.cos(y / 5)], axis=2).round().clip(0, 255).astype(np.uint8)
    masks = np.stack([(x - 20) ** 2 + (y - 15) ** 2 < 90, (x - 27) ** 2 + (y - 18) ** 2 < 60, (abs(x - 44) < 6) & (abs(y - 30) < 5)])
    return image, masks.astype(np.uint8)


def slow_masks(masks: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The masks warped pixel by pixel, and which pixels have a source on the border between two (either will do)."""
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    out, tie = np.zeros_like(masks), np.zeros(masks.shape[1:], dtype=bool)
    for row in range(masks.shape[1]):
        for column in range(masks.shape[2]):
            x, y, _ = inverse @ (column, row, 1)
            i, j = round(y), round(x)
            tie[row, column] = min(abs(x % 1 - 0.5), abs(y % 1 - 0.5)) < 1e-3
            if 0 <= i < masks.shape[1] and 0 <= j < masks.shape[2]:
                out[:, row, column] = masks[:, i, j]
    return out, tie


@pytest.mark.parametrize("seed", range(6))
def test_masks_are_those_of_a_pixel_by_pixel_warp(seeded, seed):
    image, masks = scene()
    seeded(seed)
    transform = RandomSimilarity(**STRONG).get_transform(image)
    expected, tie = slow_masks(masks, transform.matrix)
    seeded(seed)
    view, warped, kept = RandomView([RandomSimilarity(**STRONG)])(image, masks)
    assert view.shape == image.shape and view.dtype == np.uint8
    assert kept.tolist() == expected.any(axis=(1, 2)).nonzero()[0].tolist()
    assert tie.mean() < 0.05
    np.testing.assert_array_equal(warped[:, ~tie], expected[kept][:, ~tie])


def test_image_and_masks_move_together(seeded):
    """An image that shows an instance's mask must still show it after the transform."""
    _, masks = scene()
    for seed in range(5):
        seeded(seed)
        image = np.repeat(masks[0][..., None] * 255, 3, axis=2)
        view, warped, kept = RandomView([RandomSimilarity(**STRONG)])(image, masks[:1])
        shown = view[..., 0] > 127.5
        assert kept.tolist() == [0]
        assert (shown & (warped[0] > 0)).sum() / (shown | (warped[0] > 0)).sum() > 0.9


def test_the_outside_has_the_images_mean_colour(seeded):
    image, _ = scene()
    fill = tuple(image.reshape(-1, 3).mean(axis=0))
    transform = RandomSimilarity(shift=0, scale_range=(0.5, 0.5), rotation=0, flip=0).get_transform(image)
    np.testing.assert_allclose(transform.fill, fill)
    view = transform.apply_image(image)
    assert np.abs(view[:5].reshape(-1, 3).astype(float) - fill).max() <= 0.5
    assert (view[15:25, 20:36].std(axis=(0, 1)) > 2).all()  # the image itself is in the middle


def test_flip_is_exact():
    image, masks = scene()
    transform = RandomSimilarity(shift=0, scale_range=(1, 1), rotation=0, flip=1).get_transform(image)
    np.testing.assert_array_equal(transform.apply_image(image), image[:, ::-1])
    np.testing.assert_array_equal(transform.apply_segmentation(masks[2]), masks[2][:, ::-1])
    np.testing.assert_allclose(transform.apply_coords(np.array([[0.5, 3.0]])), [[W - 0.5, 3.0]])  # as Detectron2's HFlipTransform


def test_drawn_transforms_stay_in_their_ranges_and_fill_them(seeded):
    image, _ = scene()
    seeded(0)
    drawn = [RandomSimilarity(**STRONG).get_transform(image) for _ in range(300)]
    centre = np.array([[W / 2, H / 2]])
    moves = np.array([(t.apply_coords(centre) - centre)[0] / (W, H) for t in drawn])
    scales = np.array([t.scale for t in drawn])
    flips = np.array([np.linalg.det(t.matrix[:, :2]) < 0 for t in drawn])
    angles = np.array([math.degrees(math.atan2(-t.matrix[0, 1], t.matrix[1, 1])) for t in drawn])
    for values, low, high in ((moves[:, 0], -0.35, 0.35), (moves[:, 1], -0.35, 0.35), (scales, 0.6, 1.5), (angles, -25, 25)):
        assert low <= values.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < values.max() <= high
    assert 0.4 < flips.mean() < 0.6
    assert 0.4 < (scales < math.sqrt(0.6 * 1.5)).mean() < 0.6  # log-uniform
    for transform in drawn[:10]:  # a similarity: columns orthogonal and of one length
        gram = transform.matrix[:, :2].T @ transform.matrix[:, :2]
        np.testing.assert_allclose(gram, transform.scale**2 * np.eye(2), atol=1e-12)


@pytest.mark.parametrize(("shift", "kept"), [(0, [0]), (19, [0]), (22, []), (40, [])])
def test_instances_with_little_left_are_dropped(shift, kept):
    """A square of 20 pixels' width whose right edge is the image's; shifted by s, (20 - s) / 20 of it stays."""
    masks = np.zeros((1, 50, 50), np.uint8)
    masks[0, 10:30, 30:] = 1
    image = np.zeros((50, 50, 3), np.uint8)

    class Shift(T.Augmentation):
        def get_transform(self, image):
            return SimilarityTransform(np.array([[1.0, 0, shift], [0, 1, 0]]), (0, 0, 0))

    assert RandomView([Shift()], min_visible=0.04)(image, masks)[2].tolist() == kept
    assert RandomView([Shift()])(image, masks)[2].tolist() == ([0] if shift < 20 else [])


def test_visible_share_accounts_for_scale():
    masks = np.zeros((1, 50, 50), np.uint8)
    masks[0, 15:35, 15:35] = 1
    image = np.zeros((50, 50, 3), np.uint8)
    for scale in (0.5, 1.0, 2.0):  # at 2 it still fits the canvas
        view = RandomView([RandomSimilarity(0, (scale, scale), 0, 0)], min_visible=0.9)
        _, warped, kept = view(image, masks)
        assert kept.tolist() == [0] and abs(warped.sum() - 400 * scale**2) <= 4 * 20 * scale
    _, _, kept = RandomView([RandomSimilarity(0, (5.0, 5.0), 0, 0)], min_visible=0.9)(image, masks)  # fills the canvas, a quarter visible
    assert kept.tolist() == []


def test_no_instances():
    image, masks = scene()
    view, warped, kept = RandomView([RandomSimilarity(**STRONG), ColorJitter(0.4, "RGB")], 0.3)(image, masks[:0])
    assert view.shape == image.shape and warped.shape == (0, H, W) and kept.shape == (0,) and kept.dtype == np.int64


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_colour_jitter_is_saturation_contrast_and_brightness_in_a_row(seeded, image_format):
    """Blending with the pixel's grey, then with the image's mean grey, then with black, as Detectron2's three augmentations."""
    image, _ = scene()
    seeded(3)
    saturation, contrast, brightness = np.random.uniform(0.6, 1.4, 3)  # noqa: NPY002
    rgb = image if image_format == "RGB" else image[..., ::-1]
    floats = rgb.astype(np.float64)
    grey = floats @ [0.299, 0.587, 0.114]
    expected = saturation * floats + (1 - saturation) * grey[..., None]
    expected = brightness * (contrast * expected + (1 - contrast) * grey.mean())
    expected = expected.clip(0, 255)
    seeded(3)
    got = ColorJitter(0.4, image_format).get_transform(image).apply_image(image)
    got = got if image_format == "RGB" else got[..., ::-1]
    assert got.dtype == np.uint8 and np.abs(got - expected).max() < 1  # OpenCV computes in fixed point
    assert np.abs(got.astype(int) - rgb).max() > 10


def test_colours_change_nothing_else():
    transform = ColorTransform(np.hstack([0.5 * np.eye(3), np.zeros((3, 1))]))
    mask, points = np.eye(4, dtype=np.uint8), np.array([[1.0, 2.0]])
    assert transform.apply_segmentation(mask) is mask and transform.apply_coords(points) is points
