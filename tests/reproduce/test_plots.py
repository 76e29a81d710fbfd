"""Pictures: what is measured and what the paper has can be found in them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from solotrack.reproduce.planning import Run, table_plan
from solotrack.reproduce.plots import plot_ap, plot_losses
from solotrack.reproduce.results import table_results
from tests.reproduce import made_up

BLUE, RED = (31, 119, 180), (214, 39, 40)  # ours, the paper's


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(made_up.ROOT)
    return Run(str(tmp_path), (0, 1))


def pixels(png: bytes, color: tuple[int, int, int], tolerance: int = 2) -> np.ndarray:
    """(N, 2) y, x of a colour."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    return np.argwhere((np.abs(image.astype(int) - color) <= tolerance).all(axis=-1))


def test_ap(run: Run) -> None:
    table = made_up.table()
    stages = table_plan(table, run)
    empty = plot_ap(table, table_results(table, run, stages, 0))
    made_up.write_cells(table, run)
    full = plot_ap(table, table_results(table, run, stages, 0))
    assert len(pixels(full, BLUE)) > 3 * len(pixels(empty, BLUE)) > 0, "dots of four lines, and one in the legend of either"
    assert len(pixels(full, RED)) == pytest.approx(len(pixels(empty, RED)), rel=0.3), "the paper's are there either way"


def test_losses(run: Run) -> None:
    table = made_up.table()
    assert plot_losses(table, run) is None
    made_up.write_cells(table, run)
    mask, entropy = (76, 146, 195), (255, 153, 62)  # of the first two lines, a fifth of white in it
    picture = plot_losses(table, run)
    assert all(len(pixels(picture, color, 8)) > 100 for color in (mask, entropy)), "also of a term that is negative"
