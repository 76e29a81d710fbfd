"""Cells are read from the tools' own files, and what is missing says why."""

from __future__ import annotations

import math
import os
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from solotrack.config import ConfigError
from solotrack.engine.plan import PlanError
from solotrack.reproduce.planning import Run, table_plan
from solotrack.reproduce.results import (
    RowResult,
    changed_commands,
    changed_settings,
    check_begun,
    check_settings,
    fillable,
    measured_settings,
    note_command,
    read_metrics,
    table_results,
)
from solotrack.reproduce.tables import TABLES
from tests.reproduce import made_up

ROOT = made_up.ROOT
BLOCK = "Image losses as the paper writes them"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(ROOT)
    run = Run(str(tmp_path), (0, 1))
    made_up.write_cells(made_up.table(), run)
    return run


def results(run: Run, outcomes: dict[str, str] | None = None) -> dict[str, RowResult]:
    table = made_up.table()
    return {r.row.label: r for r in table_results(table, run, table_plan(table, run), 0, outcomes)[BLOCK]}


def test_cells(run: Run) -> None:
    lines = results(run)
    assert {label: sorted(line.cells) for label, line in lines.items()} == {
        "distance + category": [0],
        "distance + category, no gate": [0],
        "IC": [0, 1],
        "IC + ME": [0],
    }
    cell = lines["IC"].cells[1]
    assert cell.score("SOLO-Track", "AP") == 14.0 and math.isnan(cell.score("SOLO-Track", "AP75"))
    assert cell.association("videos", "new_object_auc") == 0.75
    assert lines["IC"].why == "" and lines["IC + ME"].why == "not run yet"


def test_adapted_lines_have_numbers_of_their_own(run: Run) -> None:
    table = TABLES["synthetic", "table3"]
    folder = made_up.write_cell(table, run, "ic_me_video", 0, {"SOLO-Track": 5.0})
    (folder / "adapted").mkdir()
    (folder / "adapted/comparison.json").write_text('{"SOLO-Track": {"AP": 8.0}}')
    lines = {r.row.label: r for r in table_results(table, run, table_plan(table, run), 0)["No post-processing"]}
    aps = [lines[f"SOLO-Track + video{more}"].cells[0].score("SOLO-Track", "AP") for more in ("", " + adaptation")]
    assert aps == [5.0, 8.0]


def test_a_failure_is_named_with_its_log(run: Run) -> None:
    lines = results(run, {"ic_me/seed1/train": "failed", "ic_me/seed1/compare": "not run"})
    assert lines["IC + ME"].why == f"failed: ic_me/seed1/train, see {run.folder}/logs/ic_me_seed1_train.log"


def test_what_cannot_be_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    table, run = TABLES["coco-ytvis", "table1"], Run(str(tmp_path), (0,), datasets=str(tmp_path / "none"))
    stages = table_plan(table, run)
    lines = {r.row.label: r.why for r in table_results(table, run, stages, 0)[BLOCK]}
    need = {"COCO", "weights/R-50.pth", "YouTube-VIS 2019"}
    for label, gpus, hours in (("distance + category", 8, 72), ("IC", 8, 76), ("IC + ME + video", 8, 87)):
        words = lines[label].removeprefix("not run: needs ").split(", ")
        assert need <= set(words) and words[-2:] == [f"{gpus} GPUs", f"≈ {hours} GPU hours"], lines[label]
    assert fillable(table, run, stages, 0) == [] == fillable(table, run, stages, 8)


def test_fillable_with_data_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is begun only if it can be brought to its end."""
    monkeypatch.chdir(tmp_path)
    table, run = TABLES["coco-ytvis", "table2"], Run(str(tmp_path / "out"), (0,), datasets=str(tmp_path))
    files = {path for recipe in table.setting.recipes.values() for path in (recipe.config, recipe.score_config, recipe.weights) if path}
    files |= {"coco/annotations/instances_train2017.json", "ytvis_2019/train.json"}
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    stages = table_plan(table, run)
    assert fillable(table, run, stages, 7) == []
    assert fillable(table, run, stages, 8) == [f"ic_me_video{frames}/seed0/compare" for frames in ("", "_3_frames", "_4_frames")]
    reasons = [{r.why for r in table_results(table, run, stages, gpus)[BLOCK]} for gpus in (7, 8)]
    assert reasons[1] == {"not run yet"} and all(why.startswith("not run: needs 8 GPUs, ") for why in reasons[0])
    (tmp_path / "ytvis_2019/train.json").unlink()
    assert fillable(table, run, stages, 8) == [], "nothing trains for days that cannot be scored"


def test_what_is_there_is_not_made_again(run: Run) -> None:
    table = made_up.table()
    stages = table_plan(table, run)
    assert set(fillable(table, run, stages, 0)) == {"ic_me/seed1/compare", "ic_me/seed1/shift"}
    for weights in Path(run.folder).rglob("model_final.pth"):
        weights.unlink()
    assert set(fillable(table, run, stages, 0)) == {"ic_me/seed1/compare", "ic_me/seed1/shift"}


def test_a_damaged_file(run: Run) -> None:
    Path(run.folder, "ic/seed0/shift.json").write_text('{"shift": ')
    line = results(run)["IC"]
    assert sorted(line.cells) == [1] and re.search(r"ic/seed0/shift\.json is damaged .*; remove it", line.why)
    Path(run.folder, "ic/seed1/config.yaml").write_text("MODEL: [")
    (sentence,) = changed_settings(made_up.table(), run)
    assert re.search(r"ic/seed1/config\.yaml is damaged .*; remove this file alone", sentence)
    note = Path(run.folder, "logs/ic_seed0_compare.json")
    note.parent.mkdir()
    note.write_bytes(b'["\xff')
    (sentence,) = changed_commands(run, table_plan(made_up.table(), run))
    assert re.search(r"ic_seed0_compare\.json is damaged .*; remove it", sentence)


def test_trainings_with_other_settings_are_named(run: Run) -> None:
    table = made_up.table()
    assert changed_settings(table, run) == [] == changed_settings(table, replace(run, overrides=("TTA.LR", "0.5")))
    other = replace(run, overrides=("SOLVER.MAX_ITER", "7", "TRACKER_HEADS.SCORE_THRESH", "0.2"))
    sentences = changed_settings(table, other)
    assert len(sentences) == 3 and any(s.startswith(f"{run.folder}/ic_me/seed0 was trained with other settings: ") for s in sentences)
    assert all("SOLVER.MAX_ITER was " in s and "is 7" in s and "SCORE_THRESH" in s and "OUTPUT_DIR" not in s for s in sentences)


def test_a_start_with_other_settings_is_named(run: Run) -> None:
    """Also where no line of the table shows it: Table 2 has the video stages alone, which stand on IC + ME."""
    other = replace(run, seeds=(0,), overrides=("SOLVER.MAX_ITER", "7"))
    assert [s.partition(" was ")[0] for s in changed_settings(TABLES["synthetic", "table2"], other)] == [f"{run.folder}/ic_me/seed0"]


def test_data_and_measurements_of_other_commands_are_named(run: Run) -> None:
    """A smoke run's few images are not taken for the real ones."""
    table, small = made_up.table(), replace(run, data_options=("--images", "40"), overrides=("TEST.FRAMES_PER_BATCH", "2"))
    data = Path(run.made, "synthetic", "stats.json")
    data.parent.mkdir(parents=True)
    data.touch()
    stages = table_plan(table, small)
    assert changed_commands(small, stages) == [], "of what was made before commands were noted, nothing is known"
    for stage in stages:
        note_command(small, stage, measured_settings(stage))
    assert changed_commands(small, stages) == []
    sentences = changed_commands(run, table_plan(table, run))
    assert f"data/synthetic was made by another command (- --images, - 40); remove {data.parent} to make it again." in sentences
    made = ("ic/seed0/compare", "ic/seed0/shift", "ic/seed1/compare", "ic/seed1/shift", "ic_me/seed0/compare", "ic_me/seed0/shift")
    assert sorted(s.partition(" was ")[0] for s in sentences) == ["data/synthetic", *made], "not what is still to be made"
    assert f"(- TEST.FRAMES_PER_BATCH, - 2); remove {run.folder}/ic/seed0/shift.json to make it again." in " ".join(sentences)


def test_measurements_with_other_settings_are_named(run: Run, tmp_path: Path) -> None:
    """The words are the same, and what the config says is not; what the measurement does not read may be what it is."""
    table, config = made_up.table(), tmp_path / "ic.yaml"
    recipe = table.setting.recipes["ic"]
    setting = replace(table.setting, recipes={**table.setting.recipes, "ic": replace(recipe, config=str(config))})
    table, run = replace(table, setting=setting), replace(run, only=("ic",))

    def sentences(settings: str) -> list[str]:
        config.write_text(f"_BASE_: {ROOT / recipe.config}\n{settings}")
        return changed_commands(run, table_plan(table, run))

    assert sentences("") == []
    for stage in table_plan(table, run):
        if stage.name.startswith("ic/") and not stage.name.endswith("/train"):
            note_command(run, stage, measured_settings(stage))
    assert sentences("SOLVER: {MAX_ITER: 7}\nTTA: {LR: 0.5}") == []
    changed = sentences("TRACKER_HEADS: {RETAIN: 3}")
    assert [s.partition(" was ")[0] for s in changed] == [f"ic/seed{seed}/{kind}" for seed in (0, 1) for kind in ("compare", "shift")]
    assert f"(TRACKER_HEADS.RETAIN was 0, is 3); remove {run.folder}/ic/seed0/shift.json" in changed[1]
    assert "RETAIN is -3; it must be" in sentences("TRACKER_HEADS: {RETAIN: -3}")[0], "a table is written all the same"


def test_a_training_that_was_stopped_goes_on_as_it_began(run: Run) -> None:
    table, stages = made_up.table(), table_plan(made_up.table(), run)
    wanted = fillable(table, run, stages, 0)
    folder = made_up.write_cell(table, run, "ic_me", 1, {"SOLO-Track": 1.0})
    for name in ("model_final.pth", "comparison.json", "shift.json"):
        (folder / name).unlink()
    check_begun(table, run, stages, wanted)  # nothing is begun
    (folder / "model_0000999.pth").touch()
    with pytest.raises(PlanError, match=rf"{folder} is half trained from what is gone by now, data/synthetic; remove it"):
        check_begun(table, run, stages, wanted)
    data = Path(run.made, "synthetic", "stats.json")
    data.parent.mkdir(parents=True)
    data.touch()
    (folder / "model_0000999.pth").touch()
    check_begun(table, run, stages, wanted)
    for words, fault in (
        (("SOLVER.MAX_ITER", "7"), r"SOLVER.MAX_ITER was \d+, is 7"),
        (("TRACKER_HEADS.CALIBRATION.IMAGES", "7"), "CALIBRATION.IMAGES"),
        (("DATALOADER.NUM_WORKERS", "0", "TRACKER_HEADS.RETAIN", "3", "TEST.FRAMES_PER_BATCH", "2"), ""),
    ):
        other = replace(run, overrides=words)
        named = pytest.raises(PlanError, match=rf"{folder} is half trained with other settings: .*{fault}.*; remove it")
        with named if fault else nullcontext():
            check_begun(table, other, table_plan(table, other), wanted)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(PlanError, match=r"config\.yaml is damaged .*; remove this file alone"):
        check_begun(table, run, stages, wanted)
    (folder / "config.yaml").write_text(config)
    os.utime(folder / "model_0000999.pth", (data.stat().st_mtime - 9,) * 2)
    with pytest.raises(PlanError, match=rf"{folder} is half trained from what is newer by now, data/synthetic; remove it, or touch"):
        check_begun(table, run, stages, wanted)


def test_overrides_are_checked_against_the_configs_of_wanted_lines(run: Run) -> None:
    """Right for the quickstart's three levels and wrong for the five of the defaults, or the other way round."""
    table = made_up.table()
    for grids, only, fault in (
        ("[16, 12, 8]", (), ""),
        ("[40, 36, 24, 16, 12]", (), "NUM_GRIDS"),
        ("[40, 36, 24, 16, 12]", ("ic",), "NUM_GRIDS"),
    ):
        other = replace(run, overrides=("MODEL.SOLO.NUM_GRIDS", grids), only=only)
        with pytest.raises(ConfigError, match=f"ic.*{fault}") if fault else nullcontext():
            check_settings(table, other, table_plan(table, other))
    whole, other = TABLES["synthetic", "table3"], replace(run, overrides=("INPUT.COPY_PASTE.PROB", "0.5"), only=("ic_me*",))
    check_settings(whole, other, table_plan(whole, other))
    other = replace(other, only=())
    with pytest.raises(ConfigError, match="masktrack_rcnn"):
        check_settings(whole, other, table_plan(whole, other))


def test_a_table_may_be_moved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    table, stages = made_up.table(), table_plan(made_up.table(), run)
    for stage in stages:
        note_command(run, stage, measured_settings(stage))
    elsewhere = replace(run, folder=str(tmp_path_factory.mktemp("other") / "tables"))
    shutil.copytree(run.folder, elsewhere.folder)
    assert changed_commands(elsewhere, table_plan(table, elsewhere)) == [] == changed_settings(table, elsewhere)


def test_metrics(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ic/seed0/metrics.json"
    with open(path, "a") as file:
        file.write('{"iteration": 39, "loss_mask": 7.0}\n{"iteration": 79, "loss_ma')
    curves = read_metrics(str(path))
    assert curves.keys() == {"loss_mask", "loss_me"}
    iterations, values = curves["loss_mask"]
    assert iterations.tolist() == [19, 39, 59] and np.allclose(values, [1 / 20, 7.0, 1 / 60])
    assert read_metrics(str(tmp_path / "none.json")) == {}
