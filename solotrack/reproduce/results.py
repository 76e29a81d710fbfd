"""What a table's commands have left: measured cells, and why others are missing."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import yaml
from detectron2.config import CfgNode

from ..config import load_config
from ..config.checks import flatten
from ..engine.plan import PlanError, Stage, log_file, obstacles, unfinished
from ..files import atomic_write
from .definition import Cell, Row, Table
from .planning import Run, cell_folder, logs_folder, measurements, train_overrides

__all__ = ["RowResult", "changed_commands", "changed_settings", "fillable", "note_command", "read_metrics", "table_results"]


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
    """Names of the measurements that are missing, wanted and can be made, with all that they need, on a machine with so many GPUs."""
    names: dict[str, None] = {}
    for row in table.rows:
        if run.only and not any(fnmatchcase(row.recipe, pattern) for pattern in run.only):
            continue
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


# What differs between a training and its table for good reasons: folders, what training fills in, and what it does not read.
_OWN = ("OUTPUT_DIR", "SEED", "MODEL.WEIGHTS", "DATASETS.CLASS_NAMES", "DATASETS.TEST", "DATASETS.CUSTOM", "TTA")


def changed_settings(table: Table, run: Run) -> list[str]:
    """Sentences about trainings that are done and were done with other settings than they would be now."""
    changes = []
    for name in table.trainings:
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


def note_command(run: Run, stage: Stage) -> None:
    """Keep the words of a command that has done its work, for ``changed_commands``."""
    with atomic_write(_words_file(run, stage)) as file:
        json.dump(_words(run, stage), file)


def changed_commands(run: Run, stages: Sequence[Stage]) -> list[str]:
    """Sentences about finished data and measurements that another command made than would now, such as other amounts of data.

    Trainings are not among them: ``changed_settings`` knows better what counts.
    """
    changes = []
    for stage in stages:
        path = _words_file(run, stage)
        if stage.name.endswith("/train") or not stage.done or not os.path.exists(path):
            continue
        lines = [line for line in difflib.ndiff(_read_json(path), _words(run, stage)) if line[0] in "+-"]
        if lines:
            made = os.path.dirname(stage.outputs[0]) if stage.name.startswith("data/") else stage.outputs[0]
            changes.append(f"{stage.name} was made by another command ({', '.join(lines)}); remove {made} to make it again.")
    return changes


def _words(run: Run, stage: Stage) -> list[str]:
    """A command without this machine's Python and folder, so that a table may be moved."""
    return [word.replace(run.folder, "{folder}") for word in stage.command[1:]]


def _words_file(run: Run, stage: Stage) -> str:
    return os.path.splitext(log_file(logs_folder(run), stage))[0] + ".json"


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
