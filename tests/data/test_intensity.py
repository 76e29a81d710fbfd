"""The stretch of grey levels, by hand and wherever images enter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from solotrack.config import load_config
from solotrack.data.intensity import Stretch
from solotrack.data.mappers import ImageMapper


def dim(seed: int = 0, height: int = 40, width: int = 50) -> np.ndarray:
    """A dark picture with few levels."""
    return np.random.default_rng(seed).integers(10, 40, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("low", "high", "gamma"), [(0, 100, 1.0), (0.5, 99.8, 1.0), (10, 80, 0.5), (0, 90, 2.0)])
def test_against_the_formula_pixel_by_pixel(low: float, high: float, gamma: float) -> None:
    image = dim()
    stretched = Stretch(low, high, gamma)(image)
    assert stretched.shape == image.shape and stretched.dtype == np.uint8
    ordered = np.sort(image.reshape(-1).astype(float))
    bottom, top = (np.interp(p / 100 * (len(ordered) - 1), np.arange(len(ordered)), ordered) for p in (low, high))
    for value, result in zip(image.reshape(-1)[:500].tolist(), stretched.reshape(-1)[:500].tolist(), strict=True):
        share = min(max((value - bottom) / (top - bottom), 0.0), 1.0)
        assert abs(result - 255 * share**gamma) <= 0.5 + 1e-9


def test_extremes() -> None:
    image = dim()
    full = Stretch(0, 100, 1.0)(image)
    assert (full.min(), full.max()) == (0, 255)
    np.testing.assert_array_equal(Stretch(0, 100, 1.0)(full), full)
    flat = np.full((5, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(Stretch(0.5, 99.8, 0.5)(flat), flat)
    lifted, plain = Stretch(0, 100, 0.5)(image), Stretch(0, 100, 1.0)(image)
    assert (lifted >= plain).all() and lifted.mean() > plain.mean()


def test_channels_share_the_levels() -> None:
    image = np.stack([np.full((8, 8), 20), np.full((8, 8), 30), np.arange(64).reshape(8, 8)], axis=2).astype(np.uint8)
    stretched = Stretch(0, 100, 1.0)(image)
    assert np.unique(stretched[..., 0]).tolist() == [round(255 * 20 / 63)] and np.unique(stretched[..., 1]).tolist() == [
        round(255 * 30 / 63)
    ]


def test_config() -> None:
    assert Stretch.from_config(load_config()) is None
    cfg = load_config("", ["INPUT.STRETCH.ENABLED", "True", "INPUT.STRETCH.LOW", "1.0", "INPUT.STRETCH.GAMMA", "0.7"])
    assert Stretch.from_config(cfg) == Stretch(1.0, 99.8, 0.7)


def test_training_and_testing_see_the_same_levels(tmp_path: Path) -> None:
    image = dim()
    Image.fromarray(image).save(tmp_path / "a.png")
    mask = {"size": [40, 50], "counts": [0, 2000]}
    annotation = {"iscrowd": 0, "category_id": 0, "segmentation": mask, "bbox": [0, 0, 50, 40], "bbox_mode": 1}
    record = {"file_name": str(tmp_path / "a.png"), "height": 40, "width": 50, "image_id": 1, "annotations": [annotation]}
    overrides = ["INPUT.STRETCH.ENABLED", "True", "INPUT.MIN_SIZE_TRAIN", "(40,)", "INPUT.MIN_SIZE_TEST", "40", "INPUT.RANDOM_FLIP", "none"]
    cfg = load_config("", overrides)
    expected = torch.from_numpy(Stretch(0.5, 99.8, 1.0)(image).transpose(2, 0, 1).copy())
    for is_train in (True, False):
        assert torch.equal(ImageMapper(cfg, is_train=is_train)(record)["image"], expected)
