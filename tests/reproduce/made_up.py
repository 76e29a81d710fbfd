"""A table of two lines, and its cells as the tools write them, without running any."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from solotrack.config import load_config
from solotrack.reproduce.definition import Table
from solotrack.reproduce.planning import Run, cell_folder, measurements, train_overrides
from solotrack.reproduce.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent.parent


def table(count: int = 4) -> Table:
    """The first lines of Table 1 in miniature: distance, distance without gate, IC, IC + ME."""
    whole = TABLES["synthetic", "table1"]
    return replace(whole, rows=whole.rows[:count])


def write_cell(table: Table, run: Run, recipe: str, seed: int, scores: dict[str, float], shift: float = 0.5) -> Path:
    """comparison.json, shift.json, metrics.json, config.yaml and weights of a model; ``scores`` are tracker -> AP."""
    folder = Path(cell_folder(run, recipe, seed))
    folder.mkdir(parents=True)
    rows = {
        name: {"AP": ap, "AP50": 2 * ap, "AP75": float("nan"), "AR1": 1.0, "AR10": 2.0, "IDF1": 4 * ap, "HOTA": 3 * ap}
        for name, ap in scores.items()
    }
    (folder / "comparison.json").write_text(json.dumps(rows))
    measures = {"match": shift, "distance": 0.25, "new_object_auc": 0.75, "null_rate": 0.5, "instances": 9, "candidates": 3.0}
    (folder / "shift.json").write_text(json.dumps({"shift": measures, "videos": measures}))
    lines = [{"iteration": i, "loss_mask": 1.0 / (i + 1), "loss_me": -0.5, "total_loss": 3.0, "lr": 0.1} for i in (19, 39, 39, 59)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    cfg = load_config(str(ROOT / table.setting.recipes[recipe].config), train_overrides(table, run, recipe))
    cfg.OUTPUT_DIR = str(folder)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "model_final.pth").touch()
    return folder


def write_cells(table: Table, run: Run) -> None:
    """IC for seeds 0 and 1, IC + ME (and with it the distance lines) for seed 0."""
    write_cell(table, run, "ic", 0, {"SOLO-Track": 10.0})
    write_cell(table, run, "ic", 1, {"SOLO-Track": 14.0})
    write_cell(table, run, "ic_me", 0, {"SOLO-Track": 13.0, "distance": 2.0, "distance, no gate": 3.0})


def stages_of(table: Table, run: Run, label: str, seed: int) -> tuple[str, ...]:
    """Measurements of a line."""
    return measurements(table, next(row for row in table.rows if row.label == label), seed)
