"""What tests of mappers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.data.labelled import MASKS, H, W, annotation, disc, encode


@pytest.fixture
def seeded() -> Callable[[int], None]:
    """Detectron2's transforms draw from NumPy's global state."""
    before = np.random.get_state()  # noqa: NPY002
    yield np.random.seed
    np.random.set_state(before)  # noqa: NPY002


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A noisy image, three discs, a polygon, a crowd and an empty mask."""
    pixels = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 7,
        "height": H,
        "width": W,
        "annotations": [
            annotation(encode(MASKS[0]), 1),
            annotation(encode(disc(40, 30, 20)), 0, crowd=1),
            annotation(encode(MASKS[2]), 0),
            annotation(encode(np.zeros((H, W), np.uint8)), 0),
            annotation(encode(MASKS[4]), 2),
            annotation([[10.0, 40.0, 25.0, 40.0, 25.0, 55.0, 10.0, 55.0]], 3),
        ],
    }
