"""Who takes part in a synthetic image or video, and where everyone is in each frame."""

from __future__ import annotations

import numpy as np

from .synthetic_objects import CATEGORIES, SceneObject, draw_object

__all__ = ["camera_path", "draw_cast", "draw_places", "draw_trajectories"]

_EXTENT = (0.15, 0.42)  # longest side of an object as a share of the image's shorter side
_STEP = (0.26, 0.54)  # mean way per frame at speed 1 as a share of the root of the image's area


def draw_cast(rng: np.random.Generator, side: int, count: tuple[int, int], paired: bool) -> list[SceneObject]:
    """Draw the objects of one scene, in depth order (the last is in front).

    Args:
        rng: source of all randomness.
        side: the image's shorter side in pixels.
        count: smallest and largest number of objects.
        paired: draw from two or three categories with at least two objects each, so that the category alone never tells who is who.
    """
    number = int(rng.integers(count[0], count[1] + 1))
    if paired:
        groups = rng.permutation(len(CATEGORIES))[: 2 if number < 6 else rng.integers(2, 4)]
        categories = np.concatenate([groups, groups, rng.choice(groups, number)])[:number]
    else:
        categories = rng.integers(len(CATEGORIES), size=number)
    objects: list[SceneObject] = []
    for category in rng.permutation(categories):
        extent = side * float(np.exp(rng.uniform(*np.log(_EXTENT))))
        objects.append(draw_object(rng, int(category), extent, objects))
    return objects


def draw_places(rng: np.random.Generator, objects: list[SceneObject], height: int, width: int) -> np.ndarray:
    """(N, 4) poses (x, y, angle, scale) for a still image: anywhere, but of three places the one farthest from the others."""
    poses = np.zeros((len(objects), 4))
    for index in range(len(objects)):
        places = rng.uniform(0.04, 0.96, (3, 2)) * (width, height)
        gaps = np.linalg.norm(places[:, None] - poses[None, :index, :2], axis=2).min(axis=1) if index else np.zeros(3)
        poses[index] = *places[gaps.argmax()], rng.uniform(0, 2 * np.pi), 1.0
    return poses


def draw_trajectories(
    rng: np.random.Generator, extents: np.ndarray, frames: int, height: int, width: int, speed: float
) -> tuple[np.ndarray, np.ndarray]:
    """Move N objects through T frames: fast, turning, bouncing off the borders or leaving through them and coming back.

    Args:
        rng: source of all randomness.
        extents: (N,) longest sides in pixels.
        frames: T.
        height, width: pixels.
        speed: factor on the way per frame; at 1 a step is a quarter to a half of the image's side.

    Returns:
        poses (T, N, 4) x, y, angle, scale; on_stage (T, N) bool, False before an object first comes in.
    """
    number, side, world = len(extents), min(height, width), np.array([width, height], float)
    # Half of the objects stay in sight; the walls of the others stand outside the image, so that they vanish for a while.
    stays = rng.random(number) < 0.5
    margin = np.where(stays, -0.4 * extents, 0.7 * extents + rng.uniform(0.0, 0.3, number) * side)[:, None]
    # The first two are there from the start; the others may come in through a border later.
    entry = np.where((rng.random(number) < 0.7) | (np.arange(number) < 2), 0, rng.integers(1, max(2, (2 * frames) // 3), number))
    pace = speed * np.sqrt(height * width) * rng.uniform(*_STEP, number)

    position = rng.uniform(0.1, 0.9, (number, 2)) * world
    heading = rng.uniform(0, 2 * np.pi, number)
    gate = _draw_gates(rng, number, world)
    inward = np.arctan2(*(world / 2 - gate).T[::-1])
    position = np.where((entry > 0)[:, None], gate, position)
    heading = np.where(entry > 0, inward + rng.normal(0, 0.4, number), heading)
    angle, spin = rng.uniform(0, 2 * np.pi, number), rng.choice([-1, 1], number) * np.radians(rng.uniform(4, 32, number))
    size_phase, size_rate = rng.uniform(0, 2 * np.pi, number), rng.uniform(0.1, 0.35, number)

    poses = np.zeros((frames, number, 4))
    for t in range(frames):
        moving = t >= np.maximum(entry, 1)
        turn = rng.normal(0, 0.35, number) + (rng.random(number) < 0.15) * rng.uniform(-np.pi, np.pi, number)
        step = pace * np.clip(rng.normal(1, 0.3, number), 0.3, 1.8)
        heading = np.where(t > entry, heading + turn, heading)
        target = position + (step * np.stack([np.cos(heading), np.sin(heading)])).T
        low, high = -margin, world + margin
        bounced = np.where(target < low, 2 * low - target, np.where(target > high, 2 * high - target, target))
        hit = (target < low) | (target > high)
        position = np.where(moving[:, None], np.clip(bounced, low, high), position)
        heading = np.where(moving & hit[:, 0], np.pi - heading, heading)
        heading = np.where(moving & hit[:, 1], -heading, heading)
        angle = angle + spin + rng.normal(0, 0.05, number)
        poses[t] = np.column_stack([position, angle, 1 + 0.22 * np.sin(size_phase + size_rate * t)])
    return poses, np.arange(frames)[:, None] >= entry


def _draw_gates(rng: np.random.Generator, number: int, world: np.ndarray) -> np.ndarray:
    """(N, 2) places on the image's border."""
    along, border, vertical = rng.uniform(0.15, 0.85, number), rng.integers(2, size=number), rng.random(number) < 0.5
    return np.where(vertical[:, None], np.column_stack([border, along]), np.column_stack([along, border])) * world


def camera_path(rng: np.random.Generator, frames: int, reach: int) -> np.ndarray:
    """(T, 2) whole-pixel offsets in [0, 2 * reach]: a slow drift of the background."""
    drift = np.cumsum(rng.normal(0, 0.15 * reach, (frames, 2)), axis=0)
    return np.round(reach + np.clip(drift, -reach, reach)).astype(int)
