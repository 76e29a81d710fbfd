"""What a table is made of: data sets, trainings, measurements and rows. All of it is data; ``planning`` makes commands of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Cell", "Column", "DataSet", "Recipe", "Row", "Scoring", "Setting", "Table"]


@dataclass(frozen=True)
class DataSet:
    """Files that trainings or measurements read.

    Words and file names may have placeholders: {datasets}, the user's folder of data sets; {made}, the one that the table makes data in.

    Attributes:
        name: for people.
        files: it is here if any of them exists.
        made_by: words for ``prepare_data.py``, ``--output`` left out; () if a person has to put it there.
        seed: added to the data seed of the table, for sets made from one; None: it takes none.
        amounts: more words for ``prepare_data.py``, over which the user's own win.
        needs: names of the data sets it is made from.
    """

    name: str
    files: tuple[str, ...]
    made_by: tuple[str, ...] = ()
    seed: int | None = None
    amounts: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scoring:
    """A way to measure a trained model on videos.

    Attributes:
        overrides: config KEY VALUE ...
        trackers: rows of ``compare_trackers``; () = all.
        hours: that it takes about.
    """

    overrides: tuple[str, ...] = ()
    trackers: tuple[str, ...] = ()
    hours: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """A training, whose weights are shared by all rows of all tables that name it.

    Attributes:
        config: yaml file.
        start: name of the recipe whose weights it starts from; "": from those of the config.
        overrides: config KEY VALUE ... that make it what it is; placeholders as for data sets.
        data: names of the data sets it reads.
        weights: file that it starts from and that no recipe makes.
        score_config: yaml file for measurements; "": that of the training.
        trackers: rows of ``compare_trackers`` that can link its detections; () = all.
        shift_test: whether its embedding can be measured by ``shift_test``.
        gpus, hours: that a training takes.
    """

    config: str
    start: str = ""
    overrides: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    weights: str = ""
    score_config: str = ""
    trackers: tuple[str, ...] = ()
    shift_test: bool = True
    gpus: int = 0
    hours: float = 0.0


@dataclass(frozen=True)
class Setting:
    """Data and trainings that tables share.

    Attributes:
        name: for people.
        data: name -> data set.
        recipes: name -> training; the name is also the folder.
        scorings: name -> measurement; "" is the plain one.
        videos: registered labelled videos that everything is scored on.
        images: registered labelled images of the shift test.
        score_data, image_data: names of the data sets that measurements read, and the shift test besides.
        score_overrides: config KEY VALUE ... of every measurement.
        gpus: that a measurement takes.
        folder: below that of the tables, for trainings whose names others have too.
        in_datasets: whether commands look for data sets in the user's folder, and not in the one of made data.
    """

    name: str
    data: Mapping[str, DataSet]
    recipes: Mapping[str, Recipe]
    scorings: Mapping[str, Scoring]
    videos: str
    images: str
    score_data: tuple[str, ...]
    image_data: tuple[str, ...] = ()
    score_overrides: tuple[str, ...] = ()
    gpus: int = 0
    folder: str = ""
    in_datasets: bool = False

    @property
    def seeded(self) -> bool:
        """Whether the data are made from a seed."""
        return any(data.seed is not None for data in self.data.values())


@dataclass(frozen=True)
class Row:
    """A line of a table: a model under a tracker.

    Attributes:
        label: its name, unique in its block.
        recipe: how its model is trained.
        tracker: row of ``compare_trackers``.
        scoring: name of the measurement.
        block: lines of one block stand together.
        paper: AP, AP50, AP75, AR1 and AR10 that the paper gives; () for none.
        over: label of the line of its block that its gain is counted from.
    """

    label: str
    recipe: str
    tracker: str = "SOLO-Track"
    scoring: str = ""
    block: str = ""
    paper: tuple[float, ...] = ()
    over: str = ""


@dataclass(frozen=True)
class Cell:
    """What was measured of one model: the contents of comparison.json and shift.json, {} where there is none."""

    scores: Mapping[str, Mapping[str, float]]
    shift: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def score(self, tracker: str, metric: str) -> float:
        """A number of comparison.json, NaN where it is undefined or was not measured."""
        return self.scores.get(tracker, {}).get(metric, math.nan)

    def association(self, where: str, measure: str) -> float:
        """A number of shift.json, NaN where it was not measured."""
        return self.shift.get(where, {}).get(measure, math.nan)


@dataclass(frozen=True)
class Column:
    """A measured column.

    Attributes:
        header: its name.
        value: number of a line's cell.
        digits: behind the point.
    """

    header: str
    value: Callable[[Row, Cell], float]
    digits: int = 1


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its command and its files.
        title: for people.
        setting: what its rows stand on.
        rows, columns: in order.
        shift_test: whether a column reads what the shift test measures.
        notes: sentences below it.
    """

    name: str
    title: str
    setting: Setting
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    shift_test: bool = False
    notes: tuple[str, ...] = ()

    @property
    def blocks(self) -> dict[str, list[Row]]:
        """Block -> its rows, both in order."""
        blocks: dict[str, list[Row]] = {}
        for row in self.rows:
            blocks.setdefault(row.block, []).append(row)
        return blocks

    @property
    def trainings(self) -> list[str]:
        """Names of the recipes that it stands on, each after the one that it starts from."""
        names: dict[str, None] = {}
        for row in self.rows:
            chain = [row.recipe]
            while start := self.setting.recipes[chain[0]].start:
                chain.insert(0, start)
            names |= dict.fromkeys(chain)
        return list(names)
