"""What the synthetic scenes are drawn from: objects, light, cameras."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from solotrack.data.synthetic_motion import draw_cast
from solotrack.data.synthetic_objects import TEXTURES, Appearance, SceneObject, draw_object, draw_outline
from solotrack.data.synthetic_scene import apply_look, draw_background, draw_light, draw_look, render_scene


def test_every_object_shares_its_category_with_another() -> None:
    for seed in range(20):
        cast = draw_cast(np.random.default_rng(seed), 64, (4, 8), paired=True)
        counts = np.bincount([item.category for item in cast])
        assert 4 <= len(cast) <= 8
        assert counts[counts > 0].min() >= 2


def test_light_is_smooth_and_coloured() -> None:
    assert (draw_light(np.random.default_rng(0), 40, 50, strength=0.0) == 1).all()
    lights = np.stack([draw_light(np.random.default_rng(seed), 40, 50, strength=0.5) for seed in range(50)])
    brightness = np.log2(lights).mean(axis=-1)
    assert brightness.std() == pytest.approx(0.5, rel=0.25)
    assert brightness.mean() < 0
    assert np.abs(np.log2(lights) - brightness[..., None]).mean() > 0.1  # of several colours
    assert np.abs(np.diff(brightness, axis=1)).mean() < brightness.std() / 5


def test_look_of_strength_zero_is_the_identity() -> None:
    rng = np.random.default_rng(0)
    image = draw_background(rng, 40, 50)
    look = draw_look(rng, 4, 1.0, strength=0.0)
    assert np.array_equal(apply_look(image, look, 2, rng), image)
    strong = draw_look(rng, 4, 1.0, strength=1.0)
    assert strong.blur.sum() == pytest.approx(1, abs=1e-5)
    assert strong.jpeg_quality < look.jpeg_quality
    assert np.abs(apply_look(image, strong, 2, rng).astype(float) - image).mean() > 3


def test_render_draws_objects_where_the_masks_are() -> None:
    # Two plain squares of 8 pixels: the second is in front, moved right by 5 and turned by a quarter, which changes nothing.
    patches = []
    for color in ((255, 0, 0), (0, 0, 255)):
        patch = np.zeros((20, 20, 4), np.uint8)
        patch[..., :3] = color
        patch[2:18, 2:18, 3] = 255
        patches.append(
            SceneObject(1, 8.0, 64.0, Appearance("stripes", np.zeros((2, 3), np.uint8), np.zeros((2, 3)), 1, 0, np.zeros(2), 0), patch)
        )
    background = np.full((24, 40, 3), 50, np.uint8)
    poses = np.array([[11.5, 9.5, 0, 1], [16.5, 9.5, np.pi / 2, 1]])
    image, visible, whole = render_scene(background, patches, poses)
    expected = np.zeros((2, 24, 40), bool)
    expected[0, 6:14, 8:16] = True
    expected[1, 6:14, 13:21] = True
    assert np.array_equal(whole, expected)
    assert np.array_equal(visible[1], expected[1])
    assert np.array_equal(visible[0], expected[0] & ~expected[1])
    assert (image[visible[0]] == (255, 0, 0)).all()
    assert (image[visible[1]] == (0, 0, 255)).all()
    assert (image[~expected.any(axis=0)] == 50).all()


def test_render_scales_and_clips() -> None:
    item = draw_object(np.random.default_rng(0), 0, 20.0)
    background = np.zeros((100, 100, 3), np.uint8)
    poses = np.array([[50, 50, 0.3, 1.0], [50, 50, 1.1, 2.0], [0, 50, 0, 1.0], [500, -300, 0, 1.0]])
    areas = [render_scene(background, [item], pose[None])[1].sum() for pose in poses]
    assert areas[0] == pytest.approx(item.area, rel=0.05)
    assert areas[1] == pytest.approx(4 * item.area, rel=0.05)
    assert 0.35 * item.area < areas[2] < 0.65 * item.area
    assert areas[3] == 0


def test_outlines_keep_their_category() -> None:
    """A simple shape descriptor, area over that of the convex hull and of the smallest circle, tells the deformed shapes apart."""
    solidity, fill = np.zeros((4, 30)), np.zeros((4, 30))
    rng = np.random.default_rng(0)
    for category in range(4):
        for n in range(30):
            points = (1000 * draw_outline(rng, category)).astype(np.float32)
            assert np.ptp(points, axis=0).max() == pytest.approx(1000, rel=1e-4)
            area = cv2.contourArea(points)
            solidity[category, n] = area / cv2.contourArea(cv2.convexHull(points))
            fill[category, n] = area / (np.pi * cv2.minEnclosingCircle(points)[1] ** 2)
    assert solidity[3].max() < 0.75 < solidity[:3].min()  # only the star is hollow
    assert fill[0].min() > fill[1].mean() > fill[1].min() > fill[2].max()  # disc, square, triangle


def test_objects_of_a_scene_look_different() -> None:
    cast = draw_cast(np.random.default_rng(1), 128, (8, 8), paired=True)
    textures = {item.appearance.texture for item in cast}
    assert len(textures) >= 4 and textures <= set(TEXTURES)
    colors = np.stack([item.patch[..., :3].reshape(-1, 3).mean(axis=0) for item in cast])
    gaps = np.linalg.norm(colors[:, None] - colors[None], axis=2)[~np.eye(8, dtype=bool)]
    assert np.median(gaps) > 60
