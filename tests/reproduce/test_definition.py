"""What tables are made of."""

from __future__ import annotations

import math
from dataclasses import replace

from solotrack.reproduce.definition import Cell, DataSet, Recipe, Row, Setting, Table


def test_what_was_not_measured_is_nan() -> None:
    cell = Cell({"IoU": {"AP": 3.0}}, {"videos": {"match": 0.5}})
    assert cell.score("IoU", "AP") == 3.0 and cell.association("videos", "match") == 0.5
    absent = (cell.score("IoU", "AP50"), cell.score("distance", "AP"), cell.association("shift", "match"), Cell({}).association("a", "b"))
    assert all(map(math.isnan, absent))


def test_blocks_keep_the_order_of_the_rows() -> None:
    rows = (Row("a", "x", block="one"), Row("b", "x", block="two"), Row("c", "x", block="one"))
    setting = Setting("made", {"d": DataSet("d", ("f",), ("make",), seed=0)}, {"x": Recipe("x.yaml")}, {}, "v", "i", ("d",))
    table = Table("t", "T", setting, rows, ())
    assert {block: [row.label for row in rows] for block, rows in table.blocks.items()} == {"one": ["a", "c"], "two": ["b"]}
    assert list(table.blocks) == ["one", "two"]
    assert setting.seeded and not replace(setting, data={"d": DataSet("d", ("f",))}).seeded


def test_trainings_come_after_those_they_start_from() -> None:
    recipes = {name: Recipe(f"{name}.yaml", start) for name, start in (("c", "b"), ("b", "a"), ("a", ""), ("x", ""), ("unused", ""))}
    setting = Setting("made", {}, recipes, {}, "v", "i", ())
    table = Table("t", "T", setting, (Row("x", "x"), Row("c", "c"), Row("b", "b"), Row("x again", "x")), ())
    assert table.trainings == ["x", "a", "b", "c"]
