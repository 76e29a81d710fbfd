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

from ..config import ConfigError, load_config
from ..config.checks import flatten
from ..engine.plan import PlanError, Stage, log_file, obstacles, unfinished
from ..files import atomic_write
from .definition import Cell, Row, Table
from .planning import Run, cell_folder, logs_folder, measurements, train_overrides

__all__ = [
    "RowResult",
    "changed_commands",
    "changed_settings",
    "check_begun",
    "check_settings",
    "fillable",
    "measured_settings",
    "note_command",
    "read_metrics",
    "table_results",
]


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
        if not _is_chosen(run, row):
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

    A file of numbers that cannot be read is a reason too.
    """
    return {block: [_row_result(table, run, stages, gpus, outcomes or {}, row) for row in rows] for block, rows in table.blocks.items()}


def _row_result(table: Table, run: Run, stages: Sequence[Stage], gpus: int, outcomes: Mapping[str, str], row: Row) -> RowResult:
    cells, reasons = {}, []
    for seed in run.seeds:
        pending = unfinished(stages, measurements(table, row, seed))
        if not pending:
            try:
                cells[seed] = _read_cell(table, run, row, seed)
            except PlanError as error:
                reasons.append(str(error))
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
        for seed in run.seeds:
            folder = cell_folder(run, name, seed)
            if not os.path.exists(os.path.join(folder, "model_final.pth")):
                continue
            try:
                different = _other_settings(folder, _training_settings(table, run, name))
            except ConfigError as error:
                different = str(error)
            except PlanError as error:
                changes.append(str(error))
                continue
            if different:
                changes.append(f"{folder} was trained with other settings: {different}; remove it to train it again.")
    return changes


def check_settings(table: Table, run: Run, stages: Sequence[Stage]) -> None:
    """Load the configs of all lines that are wanted.

    Raises:
        ConfigError: one that the overrides make impossible.
    """
    seen = set()
    for stage in stages:
        name = stage.name.split("/")[0]
        if name == "data" or not _is_wanted(table, run, name):
            continue
        try:
            if _measures(stage):
                measured_settings(stage)
            elif name not in seen:
                seen.add(name)
                _training_settings(table, run, name)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error


# What a training that was stopped may go on without or with: where it runs, and what is read when it is scored.
_FREE = (
    *("MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "VIS_PERIOD", "TEST."),
    *("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "TRACKER_HEADS."),
)


def check_begun(table: Table, run: Run, stages: Sequence[Stage], targets: Sequence[str]) -> None:
    """Look at trainings that were stopped, before they go on.

    Args:
        table, run, stages: the plan.
        targets: names of the stages that are to be done.

    Raises:
        PlanError: one was begun with other settings or from other files.
    """
    by_name, faults = {stage.name: stage for stage in stages}, []
    for stage in unfinished(stages, targets):
        name, folder = stage.name.split("/")[0], os.path.dirname(stage.outputs[0])
        if _measures(stage) or name == "data" or not os.path.isdir(folder):
            continue
        begun = [entry.stat().st_mtime for entry in os.scandir(folder) if entry.name.endswith(".pth")]
        if not begun:
            continue
        settings = _training_settings(table, run, name)
        calibration = "TRACKER_HEADS.CALIBRATION."  # a part of every checkpoint
        settings = {key: value for key, value in settings.items() if key.startswith(calibration) or not key.startswith(_FREE)}
        needs = [by_name[need] for need in stage.needs]
        gone = [need.name for need in needs if not need.done]
        newer = [need.name for need in needs if need.done and max(map(os.path.getmtime, need.outputs)) > min(begun)]
        try:
            different = _other_settings(folder, settings)
        except PlanError as error:
            faults.append(str(error))
            continue
        if different:
            faults.append(f"{folder} is half trained with other settings: {different}; remove it, or go back to those.")
        elif gone:
            faults.append(f"{folder} is half trained from what is gone by now, {', '.join(gone)}; remove it.")
        elif newer:
            faults.append(
                f"{folder} is half trained from what is newer by now, {', '.join(newer)}; remove it, or touch {folder}/*.pth"
                " if that is the same as it was."
            )
    if faults:
        raise PlanError("\n".join(faults))


def _is_chosen(run: Run, row: Row) -> bool:
    return not run.only or any(fnmatchcase(row.recipe, pattern) for pattern in run.only)


def _is_wanted(table: Table, run: Run, name: str) -> bool:
    """Whether a line that is to be run stands on a training."""
    lines = {row.recipe for row in table.rows if _is_chosen(run, row)}
    starts = set()
    for line in lines:
        while line := table.setting.recipes[line].start:
            starts.add(line)
    return name in lines | starts


def _training_settings(table: Table, run: Run, name: str) -> dict[str, object]:
    return flatten(load_config(table.setting.recipes[name].config, train_overrides(table, run, name)))


def _other_settings(folder: str, now: Mapping[str, object]) -> str:
    """What a training in ``folder`` was made with and would not be now, in words; "" for nothing, or without its config.yaml.

    Raises:
        PlanError: the config.yaml cannot be read.
    """
    path = os.path.join(folder, "config.yaml")
    if not os.path.exists(path):
        return ""
    try:
        with open(path, encoding="utf-8") as file:
            before = flatten(CfgNode(yaml.safe_load(file)))
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:
        raise PlanError(f"{path} is damaged ({' '.join(str(error).split())}); remove this file alone, the training may stay.") from error
    return _in_words({key: (before[key], value) for key, value in now.items() if key in before and not key.startswith(_OWN)})


def _in_words(pairs: Mapping[str, tuple[object, object]]) -> str:
    different = [f"{key} was {old}, is {new}" for key, (old, new) in pairs.items() if _plain(old) != _plain(new)]
    return ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")


# What a measurement reads of its config; what else is in it is the training's.
_MEASURED = (
    *("TRACKER_HEADS.", "TTA.", "TEST.", "DATASETS.VIDEO_", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "SOLVER.AMP."),
    *("MODEL.SOLO.", "MODEL.SOLO_TRACK.EMB_READ", "MODEL.SIPMASK.", "MODEL.ROI_HEADS."),
)


def measured_settings(stage: Stage) -> dict[str, object]:
    """Settings of a measurement's command, as it reads them; {} for other commands."""
    if not _measures(stage):
        return {}
    words = stage.command[2:]
    options = next((i for i in range(0, len(words), 2) if not words[i].startswith("--")), len(words))
    settings = flatten(load_config(words[words.index("--config-file") + 1], words[options:]))
    unused = () if settings["TTA.ENABLED"] else ("TTA.",)
    return {key: _plain(value) for key, value in settings.items() if key.startswith(_MEASURED) and not key.startswith(unused)}


def note_command(run: Run, stage: Stage, settings: Mapping[str, object]) -> None:
    """Keep the words of a command that has done its work, and a measurement's settings when it began, for ``changed_commands``."""
    with atomic_write(_note_file(run, stage)) as file:
        json.dump({"command": _words(run, stage), "settings": dict(settings)}, file)


def changed_commands(run: Run, stages: Sequence[Stage]) -> list[str]:
    """Sentences about finished data and measurements that another command, or other settings, made than would now.

    Trainings are not among them: ``changed_settings`` knows better what counts.
    """
    changes = []
    for stage in stages:
        path = _note_file(run, stage)
        if stage.name.endswith("/train") or not stage.done or not os.path.exists(path):
            continue
        try:
            note = _read_json(path)
        except PlanError as error:
            changes.append(str(error))
            continue
        if isinstance(note, list):  # as it was before settings were noted
            note = {"command": note, "settings": {}}
        lines = [line for line in difflib.ndiff(note["command"], _words(run, stage)) if line[0] in "+-"]
        try:
            now = measured_settings(stage)
            different = _in_words({key: (value, now[key]) for key, value in note["settings"].items() if key in now})
        except ConfigError as error:
            different = str(error)
        made = os.path.dirname(stage.outputs[0]) if stage.name.startswith("data/") else stage.outputs[0]
        if lines:
            changes.append(f"{stage.name} was made by another command ({', '.join(lines)}); remove {made} to make it again.")
        elif different:
            changes.append(f"{stage.name} was made with other settings ({different}); remove {made} to make it again.")
    return changes


def _measures(stage: Stage) -> bool:
    return not stage.name.startswith("data/") and not stage.name.endswith("/train")


def _words(run: Run, stage: Stage) -> list[str]:
    """A command without this machine's Python and folder, so that a table may be moved."""
    return [word.replace(run.folder, "{folder}") for word in stage.command[1:]]


def _note_file(run: Run, stage: Stage) -> str:
    return os.path.splitext(log_file(logs_folder(run), stage))[0] + ".json"


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
