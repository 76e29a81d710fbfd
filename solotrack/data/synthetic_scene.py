"""Drawing of synthetic scenes: backgrounds, compositing with exact masks, and the look of the camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .synthetic_objects import SUPERSAMPLE, SceneObject

__all__ = ["CameraLook", "apply_look", "draw_background", "draw_light", "draw_look", "render_scene"]

_LIGHTS = 4  # a side: nodes of the grid of light and shadow


def render_scene(background: np.ndarray, objects: Sequence[SceneObject], poses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw ``objects`` over ``background``; a later object hides an earlier one.

    Args:
        background: (H, W, 3) uint8 RGB.
        objects: N objects.
        poses: (N, 4) x and y of the centroid in pixels (pixel centres at whole numbers), angle in radians, scale.

    Returns:
        image (H, W, 3) uint8 RGB, visible masks (N, H, W) bool without overlap, whole masks (N, H, W) bool as if nothing hid them.
    """
    height, width = background.shape[:2]
    layer = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE, 4), np.float32)  # premultiplied RGBA
    visible = np.zeros((len(objects), height, width), bool)
    whole = np.zeros((len(objects), height, width), bool)
    for index, (item, pose) in enumerate(zip(objects, poses, strict=True)):
        window = _window(item, pose, height, width)
        if window is None:
            continue
        rows, columns = window
        rgba = _warp(item, pose, rows, columns)
        target = layer[_fine(rows), _fine(columns)]
        target *= 1 - rgba[..., 3:]
        target[..., :3] += rgba[..., :3] * rgba[..., 3:]
        target[..., 3] += rgba[..., 3]
        covered = _shrink(rgba[..., 3]) >= 0.5
        whole[index, rows, columns] = covered
        visible[:index, rows, columns] &= ~covered
        visible[index, rows, columns] = covered
    layer = cv2.resize(layer, (width, height), interpolation=cv2.INTER_AREA)
    image = layer[..., :3] + (1 - layer[..., 3:]) * background
    return np.clip(np.round(image), 0, 255).astype(np.uint8), visible, whole


def _window(item: SceneObject, pose: np.ndarray, height: int, width: int) -> tuple[slice, slice] | None:
    """Rows and columns of the image that the object can touch; None where it is out of sight."""
    x, y, _, scale = pose
    reach = scale * item.patch.shape[0] / (np.sqrt(2) * SUPERSAMPLE) + 1
    top, bottom = max(0, int(y - reach)), min(height, int(y + reach) + 2)
    left, right = max(0, int(x - reach)), min(width, int(x + reach) + 2)
    return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None


def _fine(pixels: slice) -> slice:
    return slice(pixels.start * SUPERSAMPLE, pixels.stop * SUPERSAMPLE)


def _warp(item: SceneObject, pose: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """(h * SUPERSAMPLE, w * SUPERSAMPLE, 4) float32 RGB in [0, 255] and alpha in [0, 1] of the object inside a window."""
    x, y, angle, scale = pose
    middle = (item.patch.shape[0] - 1) / 2
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = (np.array([x - columns.start, y - rows.start]) + 0.5) * SUPERSAMPLE - 0.5
    matrix = np.hstack([turn, (center - turn @ [middle, middle])[:, None]])
    size = ((columns.stop - columns.start) * SUPERSAMPLE, (rows.stop - rows.start) * SUPERSAMPLE)
    rgba = cv2.warpAffine(item.patch, matrix, size, flags=cv2.INTER_LINEAR).astype(np.float32)
    rgba[..., 3] /= 255
    return rgba


def _shrink(fine: np.ndarray) -> np.ndarray:
    """Mean over the samples of each pixel."""
    height, width = fine.shape[0] // SUPERSAMPLE, fine.shape[1] // SUPERSAMPLE
    return fine.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE).mean(axis=(1, 3))


def draw_background(rng: np.random.Generator, height: int, width: int, weave: float = 0.0) -> np.ndarray:
    """(height, width, 3) uint8 RGB without objects.

    Args:
        rng: source of all randomness.
        height, width: pixels.
        weave: 0 gives clouds with clutter, 1 a fibrous surface under uneven light, between them a mixture.
    """
    base = _draw_muted_color(rng)
    clouds = _draw_clouds(rng, height, width, base) if weave < 1 else 0.0
    fibres = _draw_fibres(rng, height, width, base) if weave > 0 else 0.0
    return np.clip(np.round((1 - weave) * clouds + weave * fibres), 0, 255).astype(np.uint8)


def _draw_muted_color(rng: np.random.Generator) -> np.ndarray:
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(0.0, 0.28), rng.uniform(0.3, 0.75)]]], np.float32)
    return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _noise(rng: np.random.Generator, height: int, width: int, rows: int, columns: int, channels: int) -> np.ndarray:
    """(height, width[, channels]) float32 smooth noise, about unit variance at the grid's ``rows`` x ``columns`` nodes."""
    return cv2.resize(rng.normal(0, 1, (rows, columns, channels)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def _draw_clouds(rng: np.random.Generator, height: int, width: int, base: np.ndarray) -> np.ndarray:
    octaves = ((3, 14.0), (8, 8.0), (28, 4.0))  # grid nodes a side, grey levels
    image = base + sum(amplitude * _noise(rng, height, width, grid, grid, 1)[..., None] for grid, amplitude in octaves)
    image += sum(0.5 * amplitude * _noise(rng, height, width, grid, grid, 3) for grid, amplitude in octaves)
    unit = max(height, width) / 128
    # Patches of fine pattern in irregular regions: texture alone must not make an object.
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    for _ in range(2):
        region = np.clip(_noise(rng, height, width, 5, 5, 1) - 0.6, 0, 0.5)
        angle, period = rng.uniform(0, np.pi), rng.uniform(4, 9) * unit
        pattern = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period)
        image += (region * pattern)[..., None] * rng.uniform(-45, 45, 3)
    strokes = image.copy()
    for _ in range(int(rng.integers(6, 15))):
        path = rng.uniform(0, 1, 2) * (width, height) + np.cumsum(rng.normal(0, 9 * unit, (5, 2)), axis=0)
        color = base + rng.normal(0, 22, 3)
        cv2.polylines(
            strokes,
            [np.round(path * 16).astype(np.int32)],
            False,
            color.tolist(),
            max(1, round(rng.uniform(0.6, 2.4) * unit)),
            cv2.LINE_AA,
            4,
        )
    return 0.35 * image + 0.65 * strokes


def _draw_fibres(rng: np.random.Generator, height: int, width: int, base: np.ndarray) -> np.ndarray:
    diagonal = int(np.ceil(np.hypot(height, width)))
    unit = max(height, width) / 128
    thin = _noise(rng, diagonal, diagonal, int(diagonal / (2.5 * unit)), 7, 1)
    thick = _noise(rng, diagonal, diagonal, int(diagonal / (9 * unit)), 4, 1)
    matrix = cv2.getRotationMatrix2D(((diagonal - 1) / 2, (diagonal - 1) / 2), rng.uniform(0, 180), 1.05)
    matrix[:, 2] -= ((diagonal - width) / 2, (diagonal - height) / 2)
    fibres = cv2.warpAffine(9 * thin + 11 * thick, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    x, y = np.meshgrid(np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32))
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + 0.3 * (np.cos(angle) * x + np.sin(angle) * y) - 0.12 * (x**2 + y**2)
    return (base + fibres[..., None]) * light[..., None]


def draw_light(rng: np.random.Generator, height: int, width: int, strength: float) -> np.ndarray:
    """(height, width, 3) float32 factors on each colour channel: the coloured light of a scene, bright in places and dim in others.

    Args:
        rng: source of all randomness.
        height, width: pixels.
        strength: standard deviation of the brightness over the scene in stops; 0 = even white light.
    """
    color = _noise(rng, height, width, _LIGHTS, _LIGHTS, 3)
    stops = _noise(rng, height, width, _LIGHTS, _LIGHTS, 1)[..., None] + 0.7 * (color - color.mean(axis=2, keepdims=True))
    return 2.0 ** (strength * (stops - 0.3))  # rather dim than overexposed


@dataclass(frozen=True)
class CameraLook:
    """How a camera changes a video of T frames.

    Attributes:
        gains: (T, 3) factor on each colour channel (exposure and white balance).
        gamma: exponent on intensities in [0, 1].
        blur: (k, k) kernel, sum 1; (1, 1) = sharp.
        noise: standard deviation of the sensor's noise in grey levels.
        jpeg_quality: 1 to 100.
    """

    gains: np.ndarray
    gamma: float
    blur: np.ndarray
    noise: float
    jpeg_quality: int


def draw_look(rng: np.random.Generator, frames: int, pixel_unit: float, strength: float) -> CameraLook:
    """A random look; ``strength`` 0 leaves the images as they are. ``pixel_unit`` scales the blur (1 at 128 pixels)."""
    exposure = rng.normal(0, 0.3) + np.cumsum(rng.normal(0, 0.12, frames))  # stops
    balance = rng.normal(0, 0.16, 3)
    gains = 2.0 ** (strength * (np.clip(exposure, -0.9, 0.45)[:, None] + balance - balance.mean()))
    gamma = float(np.exp(strength * np.clip(rng.normal(0, 0.22), -0.4, 0.4)))
    wide, narrow = (rng.uniform(0.9, 1.5), 0.35) if rng.random() < 0.5 else (rng.uniform(0.5, 0.85),) * 2  # in motion, out of focus
    blur = _gaussian_kernel(strength * pixel_unit * wide, strength * pixel_unit * narrow, rng.uniform(0, np.pi))
    quality = 92 - strength * rng.uniform(20, 45)
    return CameraLook(gains, gamma, blur, strength * rng.uniform(3, 8), int(np.clip(round(quality), 20, 100)))


def apply_look(image: np.ndarray, look: CameraLook, frame: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 RGB as the camera sees (H, W, 3) RGB of 0 to 255 in frame ``frame``; ``rng`` makes the sensor's noise."""
    light = np.clip(image.astype(np.float32) / 255 * look.gains[frame].astype(np.float32), 0, 1) ** look.gamma
    light = cv2.filter2D(light, -1, look.blur, borderType=cv2.BORDER_REFLECT) * 255
    if look.noise > 0:
        light += rng.normal(0, look.noise, light.shape)
    return np.clip(np.round(light), 0, 255).astype(np.uint8)


def _gaussian_kernel(wide: float, narrow: float, angle: float) -> np.ndarray:
    """(k, k) float32 Gaussian with standard deviations ``wide`` along ``angle`` and ``narrow`` across it, in pixels."""
    reach = int(np.ceil(2.5 * wide))
    if reach == 0:
        return np.ones((1, 1), np.float32)
    x, y = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    kernel = np.exp(-0.5 * ((along / wide) ** 2 + (across / narrow) ** 2))
    return (kernel / kernel.sum()).astype(np.float32)
