"""What a table's commands have left: measured cells, and why others are missing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml
from detectron2.config import CfgNode

from ..config import load_config
from ..config.checks import flatten
from ..engine.plan import PlanError, Stage, log_file, obstacles, unfinished
from .definition import Cell, Row, Table
from .planning import Run, cell_folder, logs_folder, measurements, train_overrides

__all__ = ["RowResult", "changed_settings", "fillable", "read_metrics", "table_results"]


@dataclass(frozen=True)
class RowResult:
    """A line of a table, filled.

    Attributes:
        row: its definition.
        cells: seed -> what was measured.
        why: why seeds are missing, in words; "" if none is.
    """

    row: Row
    cells: Mapping[int, Cell]
    why: str = ""


def fillable(table: Table, run: Run, stages: Sequence[Stage], gpus: int) -> list[str]:
    """Names of the measurements that are missing and can be made, with all that they need, on a machine with so many GPUs."""
    names: dict[str, None] = {}
    for row in table.rows:
        for seed in run.seeds:
            wanted = measurements(table, row, seed)
            pending = unfinished(stages, wanted)
            if pending and not obstacles(pending, gpus):
                names |= dict.fromkeys(wanted)
    return list(names)


def table_results(
    table: Table, run: Run, stages: Sequence[Stage], gpus: int, outcomes: Mapping[str, str] | None = None
) -> dict[str, list[RowResult]]:
    """Read what is there.

    Args:
        table, run, stages: the plan.
        gpus: that this machine has.
        outcomes: stage name -> "failed" for those that did when the plan was run.

    Returns:
        Block -> its lines.

    Raises:
        PlanError: a file of numbers that cannot be read.
    """
    return {block: [_row_result(table, run, stages, gpus, outcomes or {}, row) for row in rows] for block, rows in table.blocks.items()}


def _row_result(table: Table, run: Run, stages: Sequence[Stage], gpus: int, outcomes: Mapping[str, str], row: Row) -> RowResult:
    cells, reasons = {}, []
    for seed in run.seeds:
        pending = unfinished(stages, measurements(table, row, seed))
        if not pending:
            cells[seed] = _read_cell(table, run, row, seed)
            continue
        failed = [stage for stage in pending if outcomes.get(stage.name) == "failed"]
        lacking = obstacles(pending, gpus)
        if failed:
            reasons += [f"failed: {stage.name}, see {log_file(logs_folder(run), stage)}" for stage in failed]
        else:
            reasons.append(f"not run: needs {', '.join(lacking)}" if lacking else "not run yet")
    return RowResult(row, cells, "; ".join(dict.fromkeys(reasons)))


def _read_cell(table: Table, run: Run, row: Row, seed: int) -> Cell:
    shift = {}
    if len(measurements(table, row, seed)) > 1:
        shift = _read_json(os.path.join(cell_folder(run, row.recipe, seed), "shift.json"))
    return Cell(_read_json(os.path.join(cell_folder(run, row.recipe, seed, row.scoring), "comparison.json")), shift)


def _read_json(path: str) -> dict:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise PlanError(f"{path} is damaged ({error}); remove it and run the same command again.") from error


def read_metrics(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The terms of the loss in a training's metrics.json: name -> (iterations, values); {} without a file.

    Where a resumed run repeats iterations, its later word counts.
    """
    if not os.path.exists(path):
        return {}
    points: dict[str, dict[int, float]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line that was cut when the training was killed
            for name, value in record.items():
                if name.startswith("loss_"):
                    points.setdefault(name, {})[record["iteration"]] = value
    return {name: (np.array(sorted(values)), np.array([values[i] for i in sorted(values)])) for name, values in points.items()}


# What differs between a training and its table for good reasons: folders, and what training fills in.
_OWN = ("OUTPUT_DIR", "SEED", "MODEL.WEIGHTS", "DATASETS.CLASS_NAMES", "DATASETS.TEST", "DATASETS.CUSTOM")


def changed_settings(table: Table, run: Run) -> list[str]:
    """Sentences about trainings that are done and were done with other settings than they would be now."""
    changes = []
    for name in dict.fromkeys(row.recipe for row in table.rows):
        recipe = table.setting.recipes[name]
        for seed in run.seeds:
            folder = cell_folder(run, name, seed)
            if not all(os.path.exists(os.path.join(folder, file)) for file in ("model_final.pth", "config.yaml")):
                continue
            with open(os.path.join(folder, "config.yaml"), encoding="utf-8") as file:
                before = flatten(CfgNode(yaml.safe_load(file)))
            now = flatten(load_config(recipe.config, train_overrides(table, run, name)))
            different = [
                f"{key} was {before[key]}, is {value}"
                for key, value in now.items()
                if key in before and not key.startswith(_OWN) and _plain(before[key]) != _plain(value)
            ]
            if different:
                more = f" and {len(different) - 3} more" if len(different) > 3 else ""
                changes.append(f"{folder} was trained with other settings: {', '.join(different[:3])}{more}; remove it to train it again.")
    return changes


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
