"""The tables' definitions (and those of the settings below them): the paper's rows and numbers, and nothing that is not there."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from solotrack.engine.comparison import TRACKERS
from solotrack.reproduce.definition import Cell, Table
from solotrack.reproduce.settings import FULL, SYNTHETIC
from solotrack.reproduce.tables import TABLES

EVERY = pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: f"{table.setting.name}-{table.name}")


@EVERY
def test_names_are_there(table: Table) -> None:
    setting = table.setting
    for row in table.rows:
        recipe = setting.recipes[row.recipe]
        assert row.tracker in (setting.scorings[row.scoring].trackers or recipe.trackers or TRACKERS)
        assert recipe.start in {"", *setting.recipes} and set(recipe.data) <= set(setting.data)
        assert len(row.paper) in (0, 5)
    assert set(setting.score_data) | set(setting.image_data) <= set(setting.data)
    assert all(set(data.needs) <= set(setting.data) for data in setting.data.values())
    for rows in table.blocks.values():
        labels = [row.label for row in rows]
        assert len(set(labels)) == len(labels)
        for index, row in enumerate(rows):
            assert not row.over or row.over in labels[:index], "a gain is counted from a line above"


@EVERY
def test_each_line_is_another_measurement(table: Table) -> None:
    cells = [(row.block, row.recipe, row.tracker, row.scoring) for row in table.rows]
    assert len(set(cells)) == len(cells)


def test_miniature_and_full_size_have_the_same_lines_of_the_paper() -> None:
    for name in ("table1", "table2", "table3"):
        lines = [{(row.label, row.paper) for row in TABLES[data, name].rows if row.paper} for data in ("synthetic", "coco-ytvis")]
        assert lines[1] <= lines[0]


def test_numbers_are_the_paper_s(shared_dir: Path) -> None:
    """Every line of the paper's Tables 1 to 3 is a line here, and there are no others."""
    text = next((shared_dir / "seeds").glob("*.txt")).read_text(encoding="utf-8")
    text = re.sub(r"</?b>", "", text[: text.index("OpenSVAI")])
    printed = {tuple(map(float, numbers)) for numbers in re.findall(r"\t(\d\d\.\d)" * 5 + r"\n", text)}
    assert len(printed) == 15
    ours = {row.paper for (data, _), table in TABLES.items() if data == "coco-ytvis" for row in table.rows if row.paper}
    assert ours == printed


def test_columns_of_the_ablation() -> None:
    table = TABLES["synthetic", "ablation"]
    aps = {name: float(number) for number, name in enumerate(("distance", "distance, no gate", "IoU", "SOLO-Track + cues"), start=1)}
    scores = {name: {"AP": ap} for name, ap in aps.items()} | {"SOLO-Track": {"AP": 9.0, "AP50": 50.0, "AR10": 30.0}}
    shift = {"videos": {"new_object_auc": 0.1, "match": 0.2}, "shift": {"match": 0.3, "distance": 0.4}}

    def line(scores: dict[str, dict[str, float]]) -> dict[str, float]:
        return {column.header: column.value(table.rows[0], Cell(scores, shift)) for column in table.columns}

    assert line(scores) == {
        **{"AP distance": 1.0, "AP distance, no gate": 2.0, "AP IoU": 3.0, "AP embedding": 9.0, "AP + cues": 4.0},
        **{"gain over distance": 7.0, "AP50": 50.0, "AR10": 30.0},
        **{"new-object AUC": 0.1, "match, videos": 0.2, "match, shift test": 0.3, "nearest centre, shift test": 0.4},
    }
    for missing in ("distance", "distance, no gate"):
        rest = {name: values for name, values in scores.items() if name != missing}
        assert math.isnan(line(rest)["gain over distance"]), "the better of two is not known from one"


def test_association_is_the_embedding_s() -> None:
    table = TABLES["coco-ytvis", "table1"]
    cell = Cell({}, {"videos": {"match": 0.2, "distance": 0.1, "new_object_auc": 0.3}})
    columns = {column.header: column.value for column in table.columns}
    match, auc = ({row.label: columns[name](row, cell) for row in table.rows} for name in ("match, videos", "new-object AUC"))
    assert match["IC"] == 0.2 and match["distance + category, no gate"] == 0.1 and math.isnan(match["distance + category"])
    assert auc["IC"] == 0.3 and math.isnan(auc["distance + category"]) and math.isnan(auc["distance + category, no gate"])


def test_a_config_is_named_once() -> None:
    """Trainings that share a config differ in where they start or in what they override."""
    for setting in (SYNTHETIC, FULL):
        trainings = [(recipe.config, recipe.start, recipe.overrides) for recipe in setting.recipes.values()]
        assert len(set(trainings)) == len(trainings)
