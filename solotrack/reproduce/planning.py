"""From a table to a plan: data, trainings and measurements, each once, whichever rows and tables share it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..engine.plan import Input, Stage
from .definition import Recipe, Row, Table

__all__ = ["Run", "cell_folder", "logs_folder", "measurements", "table_plan", "train_overrides"]


@dataclass(frozen=True)
class Run:
    """Where a table is made, and what its user may choose.

    Attributes:
        folder: for everything that is made; tables made in one folder share it.
        seeds: of weights and batches.
        data_seed: of synthetic data.
        datasets: the user's folder of data sets.
        overrides: config KEY VALUE ... of every training and measurement; those that make a recipe what it is win.
        data_options: more words for the making of synthetic data.
        gpus: that a training takes at most.
        only: patterns of names of trainings, as a shell's; lines of others are not run. () = all are.
    """

    folder: str
    seeds: tuple[int, ...]
    data_seed: int = 0
    datasets: str = "datasets"
    overrides: tuple[str, ...] = ()
    data_options: tuple[str, ...] = ()
    gpus: int = sys.maxsize
    only: tuple[str, ...] = ()

    @property
    def made(self) -> str:
        """Folder of the data that the table makes."""
        return os.path.join(self.folder, "data")

    def filled(self, words: Sequence[str]) -> tuple[str, ...]:
        """Words with the folders in their placeholders' place."""
        return tuple(word.format(datasets=self.datasets, made=self.made) for word in words)


def logs_folder(run: Run) -> str:
    """Folder of what the commands print."""
    return os.path.join(run.folder, "logs")


def cell_folder(run: Run, recipe: str, seed: int, scoring: str = "") -> str:
    """Folder of a model, or of a measurement of it that is not the plain one."""
    return os.path.join(run.folder, recipe, f"seed{seed}", scoring).rstrip(os.sep)


def measurements(table: Table, row: Row, seed: int) -> tuple[str, ...]:
    """Names of the stages that a row reads."""
    cell = f"{row.recipe}/seed{seed}"
    shift = table.shift_test and table.setting.recipes[row.recipe].shift_test
    return (_joined(cell, "compare", row.scoring), *([f"{cell}/shift"] if shift else []))


def train_overrides(table: Table, run: Run, recipe: str) -> tuple[str, ...]:
    """Config KEY VALUE ... of a training, but for its start, its seed and its folder."""
    return (*run.overrides, *run.filled(table.setting.recipes[recipe].overrides))


def table_plan(table: Table, run: Run) -> list[Stage]:
    """The stages of a table; each comes after those it needs. Commands run in the repository's root."""
    plan = _Plan(table, run)
    for seed in run.seeds:
        for row in table.rows:
            plan.add_measurements(row, seed)
    return list(plan.stages.values())


@dataclass
class _Plan:
    table: Table
    run: Run
    stages: dict[str, Stage] = field(default_factory=dict)

    def add_measurements(self, row: Row, seed: int) -> None:
        setting, recipe = self.table.setting, self.table.setting.recipes[row.recipe]
        train = self.add_training(row.recipe, seed)
        scoring = setting.scorings[row.scoring]
        words = (*train_overrides(self.table, self.run, row.recipe), *self.run.filled((*setting.score_overrides, *scoring.overrides)))
        config = recipe.score_config or recipe.config
        cell = cell_folder(self.run, row.recipe, seed)
        model = ("--config-file", config, "--weights", f"{cell}/model_final.pth")
        for name in measurements(self.table, row, seed):
            shift = name.endswith("/shift")
            folder = cell if shift else cell_folder(self.run, row.recipe, seed, row.scoring)
            output = f"{folder}/{'shift' if shift else 'comparison'}.json"
            if shift:
                command = _tool(
                    "shift_test", *model, "--images", setting.images, "--videos", setting.videos, "--output-json", output, *words
                )
            else:
                trackers = (word for tracker in scoring.trackers or recipe.trackers for word in ("--tracker", tracker))
                scored = ("--dataset", setting.videos, "--metrics", "mot", "--output", folder)
                command = _tool("compare_trackers", *model, *scored, *trackers, *words)
            needs, inputs = self.add_data((*setting.score_data, *(setting.image_data if shift else ())))
            needs, inputs = (train, *needs), (*inputs, Input(config, (config,)))
            stage = Stage(name, command, (output,), needs, inputs, setting.gpus, scoring.hours, self.environment)
            self.stages.setdefault(name, stage)

    def add_training(self, name: str, seed: int) -> str:
        recipe = self.table.setting.recipes[name]
        stage = f"{name}/seed{seed}/train"
        if stage in self.stages:
            return stage
        needs, inputs = self.add_data(recipe.data)
        start: tuple[str, ...] = ()
        if recipe.start:
            needs = (self.add_training(recipe.start, seed), *needs)
            start = ("MODEL.WEIGHTS", f"{cell_folder(self.run, recipe.start, seed)}/model_final.pth")
        folder = cell_folder(self.run, name, seed)
        command = _tool(
            "train_net",
            *("--config-file", recipe.config, "--resume", *self.gpu_option(recipe)),
            *train_overrides(self.table, self.run, name),
            *(*start, "OUTPUT_DIR", folder, "SEED", str(seed), "DATASETS.TEST", "()"),
        )
        files = [recipe.config, *([recipe.weights] if recipe.weights else [])]
        inputs = (*inputs, *(Input(file, (file,)) for file in files))
        gpus = min(recipe.gpus, self.run.gpus)
        hours = recipe.hours * (recipe.gpus / gpus if gpus else 1)
        self.stages[stage] = Stage(stage, command, (f"{folder}/model_final.pth",), needs, inputs, gpus, hours, self.environment)
        return stage

    def add_data(self, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[Input, ...]]:
        """Stages that make data sets, and the data sets that a person has to put there."""
        needs, inputs = [], []
        for name in names:
            data = self.table.setting.data[name]
            files = self.run.filled(data.files)
            if not data.made_by:
                inputs.append(Input(data.name, files))
                continue
            stage = f"data/{name}"
            needs.append(stage)
            if stage not in self.stages:
                before, sources = self.add_data(data.needs)
                seed = () if data.seed is None else ("--seed", str(self.run.data_seed + data.seed))
                command, *options = data.made_by
                made = () if data.seed is None else self.run.data_options
                words = (command, "--output", os.path.dirname(files[0]), *seed, *data.amounts, *made, *options)
                self.stages[stage] = Stage(stage, _tool("prepare_data", *words), files, before, sources, environment=self.environment)
        return tuple(needs), tuple(inputs)

    @property
    def environment(self) -> tuple[tuple[str, str], ...]:
        return (("DETECTRON2_DATASETS", self.run.datasets if self.table.setting.in_datasets else self.run.made),)

    def gpu_option(self, recipe: Recipe) -> tuple[str, ...]:
        gpus = min(recipe.gpus, self.run.gpus)
        return ("--num-gpus", str(gpus)) if gpus else ()


def _tool(name: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, f"tools/{name}.py", *words)


def _joined(cell: str, stage: str, variant: str) -> str:
    return f"{cell}/{stage}" + (f"_{variant}" if variant else "")
