"""The things that move in the synthetic scenes: a shape gives the category, a texture gives the identity.

Two objects of one category share their shape up to a smooth deformation and nothing else, so a detector can learn the category while
only an appearance embedding can tell the objects apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["CATEGORIES", "SUPERSAMPLE", "TEXTURES", "Appearance", "SceneObject", "draw_appearance", "draw_object", "draw_outline"]

CATEGORIES = ("disc", "square", "triangle", "star")  # category id = index + 1
TEXTURES = ("stripes", "waves", "checks", "dots", "rings", "sectors", "blobs", "gradient")
SUPERSAMPLE = 2  # patches and scenes are drawn at this many samples a pixel and side

_PATCH_BORDER = 2  # transparent samples around a patch, so that warping never meets an opaque edge
_RIM_COLOR = (20, 20, 24)  # RGB
_RIM_WIDTH = 0.05  # of the part inside the outline, share of the longest side
_SAMPLES_PER_CYCLE = 5.0  # shortest texture period in pixels of the image
_KIND_BONUS = 30.0  # Lab units that a different texture is worth beside a different colour


@dataclass(frozen=True)
class Appearance:
    """What sets one object apart from the others of its category.

    Attributes:
        texture: one of ``TEXTURES``.
        colors: (2, 3) uint8 RGB.
        lab: (2, 3) the colours in CIE Lab, where distances are as people see them.
        cycles: texture periods across the object.
        angle: direction of the texture on the object, radians.
        phase: (2,) radians.
        noise_seed: seed of the noise in "blobs".
    """

    texture: str
    colors: np.ndarray
    lab: np.ndarray
    cycles: float
    angle: float
    phase: np.ndarray
    noise_seed: int


@dataclass(frozen=True)
class SceneObject:
    """An object that can be drawn at any place, angle and scale.

    Attributes:
        category: 0-based index into ``CATEGORIES``.
        extent: longest side in pixels at scale 1 and angle 0.
        area: pixels covered at scale 1.
        appearance: texture and colours.
        patch: (P, P, 4) uint8 RGBA, ``SUPERSAMPLE`` samples a pixel, the object's centroid in the middle.
    """

    category: int
    extent: float
    area: float
    appearance: Appearance
    patch: np.ndarray


def draw_object(rng: np.random.Generator, category: int, extent: float, others: Sequence[SceneObject] = ()) -> SceneObject:
    """Draw an object of ``category`` that looks unlike ``others``.

    Args:
        rng: source of all randomness.
        category: 0-based index into ``CATEGORIES``.
        extent: longest side in pixels.
        others: objects of the same scene; their colours and textures are avoided.
    """
    outline = draw_outline(rng, category) * (extent * SUPERSAMPLE)  # (P, 2) samples, centroid at 0
    side = 2 * (int(np.ceil(np.abs(outline).max())) + _PATCH_BORDER)
    alpha = np.zeros((side, side), np.uint8)
    fixed_point = np.round((outline + (side - 1) / 2) * 16).astype(np.int32)
    cv2.fillPoly(alpha, [fixed_point], 255, cv2.LINE_AA, 4)
    appearance = draw_appearance(rng, [other.appearance for other in others])
    rgb = _paint(appearance, side, extent * SUPERSAMPLE)
    # A dark rim, the same for all: whatever an object's texture and what is behind it, its shape can be seen.
    cv2.polylines(rgb, [fixed_point], True, _RIM_COLOR, round(2 * _RIM_WIDTH * extent * SUPERSAMPLE), cv2.LINE_AA, 4)
    area = float(alpha.sum()) / (255 * SUPERSAMPLE**2)
    return SceneObject(category, extent, area, appearance, np.dstack([rgb, alpha]))


def draw_outline(rng: np.random.Generator, category: int) -> np.ndarray:
    """(P, 2) closed outline with its centroid at 0 and its longest side 1: the category's shape, smoothly deformed."""
    points = _densify(_corners(category), 160)
    points = sum(np.roll(points, shift, axis=0) for shift in range(-3, 4)) / 7  # rounds the corners a little
    theta = np.arctan2(points[:, 1], points[:, 0])
    # Less for the disc: a disc with three or four bumps would pass for a triangle or a square.
    amplitude = 0.015 if category == 0 else 0.03
    wobble = sum(
        np.clip(rng.normal(0, amplitude), -2 * amplitude, 2 * amplitude) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)
    )
    points = points * (1 + wobble)[:, None]
    stretch, direction = rng.uniform(0.82, 1.0), rng.uniform(0, np.pi)
    axis = np.array([np.cos(direction), np.sin(direction)])
    points = points - (1 - stretch) * (points @ axis)[:, None] * axis
    points = points - _centroid(points)
    return points / np.ptp(points, axis=0).max()


def draw_appearance(rng: np.random.Generator, others: Sequence[Appearance] = (), candidates: int = 12) -> Appearance:
    """Of ``candidates`` random appearances, the one farthest from the nearest of ``others`` (the first where there are none)."""
    drawn = [_draw_candidate(rng) for _ in range(candidates if others else 1)]
    return max(drawn, key=lambda one: min((_distance(one, other) for other in others), default=0.0))


def _corners(category: int) -> np.ndarray:
    """(K, 2) corners of the category's ideal shape around 0."""
    count, inner = ((64, 1.0), (4, 1.0), (3, 1.0), (10, 0.42))[category]
    angle = np.arange(count) * (2 * np.pi / count)
    radius = np.where(np.arange(count) % 2 == 1, inner, 1.0)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _densify(corners: np.ndarray, count: int) -> np.ndarray:
    """(count, 2) points at equal distances along the closed polygon ``corners``."""
    closed = np.vstack([corners, corners[:1]])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, length[-1], count, endpoint=False)
    return np.stack([np.interp(at, length, closed[:, axis]) for axis in (0, 1)], axis=1)


def _centroid(points: np.ndarray) -> np.ndarray:
    """(2,) centre of the area inside the closed polygon ``points``."""
    after = np.roll(points, -1, axis=0)
    cross = points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]
    return ((points + after) * cross[:, None]).sum(axis=0) / (3 * cross.sum())


def _draw_candidate(rng: np.random.Generator) -> Appearance:
    colors, lab = _draw_color_pair(rng)
    return Appearance(
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        colors=colors,
        lab=lab,
        cycles=rng.uniform(2.0, 4.0),
        angle=rng.uniform(0, 2 * np.pi),
        phase=rng.uniform(0, 2 * np.pi, 2),
        noise_seed=int(rng.integers(2**31)),
    )


def _draw_color_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(2, 3) uint8 RGB and the same in Lab: of eight pairs of vivid colours the one whose contrast is largest."""
    hsv = np.stack([rng.uniform(0, 360, (8, 2)), rng.uniform(0.55, 1.0, (8, 2)), rng.uniform(0.35, 1.0, (8, 2))], axis=-1)
    neutral = rng.random((8, 2)) < 0.15  # near black or near white
    hsv[..., 1] = np.where(neutral, 0.06, hsv[..., 1])
    hsv[..., 2] = np.where(neutral, np.where(rng.random((8, 2)) < 0.5, 0.12, 0.97), hsv[..., 2])
    rgb = cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    best = np.linalg.norm(lab[:, 0] - lab[:, 1], axis=1).argmax()
    return np.round(rgb[best] * 255).astype(np.uint8), lab[best]


def _distance(one: Appearance, other: Appearance) -> float:
    """How differently two objects look: Lab distance of their colours in the better order, plus a bonus for another texture."""
    gaps = np.linalg.norm(one.lab[:, None] - other.lab[None], axis=2)  # (2, 2)
    return float(min(gaps[0, 0] + gaps[1, 1], gaps[0, 1] + gaps[1, 0])) / 2 + _KIND_BONUS * (one.texture != other.texture)


def _paint(appearance: Appearance, side: int, extent: float) -> np.ndarray:
    """(side, side, 3) uint8 RGB; ``extent`` is the object's longest side in samples."""
    weight = _weights(appearance, side, extent)[..., None]
    first, second = appearance.colors.astype(np.float32)
    return np.round(first * (1 - weight) + second * weight).astype(np.uint8)


def _weights(appearance: Appearance, side: int, extent: float) -> np.ndarray:
    """(side, side) share of the second colour, in [0, 1]."""
    at = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / extent  # 0 in the middle, the object reaches to about ±0.5
    x, y = np.meshgrid(at, at)
    u = np.cos(appearance.angle) * x + np.sin(appearance.angle) * y
    v = np.cos(appearance.angle) * y - np.sin(appearance.angle) * x
    cycles = min(appearance.cycles, extent / (SUPERSAMPLE * _SAMPLES_PER_CYCLE))
    omega = 2 * np.pi * cycles
    p, q = appearance.phase
    if appearance.texture == "stripes":
        return _step(np.sin(omega * u + p))
    if appearance.texture == "waves":
        return _step(np.sin(omega * (u + 0.12 * np.sin(2 * np.pi * 1.5 * v + q)) + p))
    if appearance.texture == "checks":
        return _step(2 * np.sin(0.8 * omega * u + p) * np.sin(0.8 * omega * v + q))
    if appearance.texture == "dots":
        return _step(np.cos(omega * u + p) + np.cos(omega * v + q) - 0.7)
    if appearance.texture == "rings":
        return _step(np.sin(1.4 * omega * np.hypot(u, v) + p))
    if appearance.texture == "sectors":
        return _step(1.5 * np.sin((2 + round(appearance.cycles)) * np.arctan2(v, u) + p))
    if appearance.texture == "blobs":
        cells = 2 + round(1.5 * cycles)
        noise = np.random.default_rng(appearance.noise_seed).normal(0, 1, (cells, cells)).astype(np.float32)
        return _step(cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC))
    return np.clip(0.5 + 1.2 * u, 0, 1)  # gradient


def _step(wave: np.ndarray) -> np.ndarray:
    """A soft step: two flat colours with a narrow ramp, so that small objects do not alias."""
    return np.clip(0.5 + 1.5 * wave, 0, 1)
