"""Pictures: what is measured and what the paper has can be found in them."""

from __future__ import annotations

import json
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


@pytest.fixture
def as_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures stay figures, in which positions can be read."""
    monkeypatch.setattr("solotrack.reproduce.plots._png", lambda figure: figure)


def test_positions(run: Run, as_figure: None) -> None:
    table = made_up.table()
    made_up.write_cells(table, run)
    axis = plot_ap(table, table_results(table, run, table_plan(table, run), 0)).axes[0]
    paper = {line.get_ydata()[0]: line.get_xdata()[0] for line in axis.lines if line.get_marker() == "D" and len(line.get_xdata())}
    assert paper == {0: 23.9, 2: 28.4, 3: 29.7}
    means = {float(bar[0].get_ydata()[0]): float(bar[0].get_xdata()[0]) for bar in axis.containers}
    assert means == {0: 2.0, 1: 3.0, 2: 12.0, 3: 13.0}
    errors = [np.ptp(bar[2][0].get_segments()[0][:, 0]) / 2 for bar in axis.containers]
    assert errors == pytest.approx([0, 0, 2, 0]), "of the mean of 10 and 14"
    seeds = [list(line.get_xdata()) for line in axis.lines if line.get_alpha() == 0.35]
    assert seeds == [[2.0], [3.0], [10.0, 14.0], [13.0]]


def test_every_term_has_a_colour_of_its_own(run: Run, as_figure: None) -> None:
    """Table 3's three systems have more terms than Matplotlib's usual ten colours."""
    table = made_up.table()
    folder = made_up.write_cell(table, run, "ic", 0, {})
    (folder / "metrics.json").write_text(json.dumps({"iteration": 0, **{f"loss_{number}": 1.0 for number in range(15)}}))
    assert len({line.get_color() for line in plot_losses(table, run).legends[0].get_lines()}) == 15


def test_losses(run: Run) -> None:
    table = made_up.table()
    assert plot_losses(table, run) is None
    made_up.write_cells(table, run)
    mask, entropy = (76, 146, 195), (255, 153, 62)  # of the first two lines, a fifth of white in it
    picture = plot_losses(table, run)
    assert all(len(pixels(picture, color, 8)) > 100 for color in (mask, entropy)), "also of a term that is negative"
