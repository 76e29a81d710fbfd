"""Tables in words."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from solotrack.reproduce.definition import Row
from solotrack.reproduce.planning import Run, table_plan
from solotrack.reproduce.report import as_html, as_markdown, mean_and_error, seed_values
from solotrack.reproduce.results import RowResult, table_results
from solotrack.reproduce.tables import TABLES
from tests.reproduce import made_up


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(made_up.ROOT)
    run = Run(str(tmp_path), (0, 1))
    made_up.write_cells(made_up.table(), run)
    return run


def results(run: Run) -> dict[str, list[RowResult]]:
    table = made_up.table()
    return table_results(table, run, table_plan(table, run), 0, {"ic_me/seed1/train": "failed"})


def rows_of(markdown: str) -> dict[str, dict[str, str]]:
    """Label -> header -> text."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_mean_and_error() -> None:
    assert mean_and_error([10.0, 14.0], 1) == "12.0 ± 2.0"  # deviation 2.83 / sqrt(2)
    assert mean_and_error([1.0, 2.0, 6.0], 2) == "3.00 ± 1.53"
    assert mean_and_error([3.0], 1) == "3.0" and mean_and_error([3.0], 1, sign=True) == "+3.0"
    assert mean_and_error([float("nan"), 3.0], 1) == "3.0" and mean_and_error([float("nan")], 1) == mean_and_error([], 1) == "–"
    assert mean_and_error([-0.01], 1) == "0.0"


def test_markdown(run: Run) -> None:
    text = as_markdown(made_up.table(), results(run), run, ["a warning"])
    rows = rows_of(text)
    ic = rows["IC"]
    assert (ic["paper"], ic["AP"], ic["AP50"], ic["AP75"]) == ("28.4 50.0 30.4 27.6 34.4", "12.0 ± 2.0", "24.0 ± 4.0", "–")
    assert ic["match, videos"] == "0.500 ± 0.000" and (ic["IDF1"], ic["HOTA"]) == ("48.0 ± 8.0", "36.0 ± 6.0")
    assert (ic["gain in AP"], ic["gain in HOTA"]) == ("+7.0", "+21.0"), "over distance without gate, of the one seed that both have"
    ic_me = rows["IC + ME (1 of 2 seeds)"]
    assert (ic_me["AP"], ic_me["gain in AP"]) == ("13.0", "+3.0")
    distance = rows["distance + category (1 of 2 seeds)"]
    assert (distance["AP"], distance["match, videos"], distance["gain in AP"]) == ("2.0", "–", ""), "matching is the embedding's"
    assert text.startswith("# Table 1: ") and "## Image losses as the paper writes them" in text
    assert "synthetic data of generator seed 0, mean ± standard error over seeds 0, 1" in text
    assert "- IC + ME: failed: ic_me/seed1/train, see " in text and "- a warning" in text
    assert "Not the configs' settings" not in text
    assert ic["training"] == "ic" and "ic: projects/solo_track/configs/synthetic/ic.yaml" in text


def test_trainings_are_told() -> None:
    table = TABLES["synthetic", "table2"]
    text = as_markdown(table, {}, Run("", (0,)))
    assert "- Training ic_me_video: projects/solo_track/configs/synthetic/ic_me_video.yaml from ic_me with INPUT.CLIPS.FRAMES 2.\n" in text


def test_changes_of_the_user_are_said(run: Run) -> None:
    changed = replace(run, overrides=("SOLVER.MAX_ITER", "3"), data_options=("--videos", "2"), seeds=(0,), data_seed=4)
    text = as_markdown(made_up.table(), results(changed), changed)
    assert "- Not the configs' settings: --videos 2 SOLVER.MAX_ITER 3." in text and "of generator seed 4, seed 0;" in text


def test_reasons_stand_in_the_table(run: Run) -> None:
    block = {"": [RowResult(Row("a | b", "ic"), {}, "not run: needs COCO, 8 GPUs")]}
    table = replace(made_up.table(), rows=(Row("a | b", "ic"),))
    text = as_markdown(table, block, run)
    assert "| a \\| b | ic         | not run: needs COCO, 8 GPUs |" in text
    assert "| paper" not in text and "gain in" not in text, "columns that no line fills are left out"


def test_html(run: Run) -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.cells: list[str] = []
            self.images: list[str] = []

        def handle_starttag(self, tag, attrs) -> None:
            if tag == "img":
                self.images.append(dict(attrs)["src"])
            elif tag not in ("meta",):
                self.open.append(tag)

        def handle_endtag(self, tag) -> None:
            assert self.open.pop() == tag

        def handle_data(self, data) -> None:
            if self.open and self.open[-1] in ("td", "th"):
                self.cells.append(data.strip())

    reader = Reader()
    page = as_html(made_up.table(), results(run), run, ["1 < 2 & <b>"], ["table1.png"])
    reader.feed(page)
    assert not reader.open and reader.images == ["table1.png"] and "1 &lt; 2 &amp; &lt;b&gt;" in page
    assert {"12.0 ± 2.0", "28.4 50.0 30.4 27.6 34.4", "IC + ME (1 of 2 seeds)"} <= set(reader.cells)


def test_seed_values(run: Run) -> None:
    line = next(r for r in results(run)["Image losses as the paper writes them"] if r.row.label == "IC")
    assert seed_values(line) == {0: 10.0, 1: 14.0} and seed_values(line, "AP50") == {0: 20.0, 1: 28.0}
