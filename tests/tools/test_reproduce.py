"""Tables as commands: from nothing to a table, what happens the second time, and after a failure."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import pytest

from solotrack.engine.plan import PlanError, folder_lock
from solotrack.reproduce.definition import Table
from solotrack.reproduce.planning import Run, table_plan
from solotrack.reproduce.tables import TABLES
from tests.toolserver import tool_server

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ("--images", "4", "--val-images", "1", "--videos", "1", "--unlabelled-videos", "2", "--frames", "4", "--workers", "1")
SHORT = (
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1", "DATALOADER.NUM_WORKERS", "0"),
    *("TRACKER_HEADS.CALIBRATION.IMAGES", "4", "TRACKER_HEADS.SCORE_THRESH", "0.0", "MODEL.SOLO.UPDATE_THRESH", "0.0"),
    *("MODEL.SOLO.SCORE_THRESH", "0.0", "MODEL.SOLO.MAX_PER_IMAGE", "5"),
)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce_tool_itself", ROOT / "tools" / "reproduce.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield


def first_line(name: str) -> Table:
    table = TABLES["synthetic", name]
    return replace(table, rows=table.rows[:1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The first line of Table 2 (data, image training, video training, comparison), made by the plan's own commands, but for the last."""
    run = Run(str(tmp_path_factory.mktemp("tables")), (0,), overrides=SHORT, data_options=SMALL)
    stages = table_plan(first_line("table2"), run)
    assert [stage.name for stage in stages] == [
        "data/synthetic",
        *(f"ic_me{x}" for x in ("/seed0/train", "_video/seed0/train", "_video/seed0/compare")),
    ]
    for stage in stages[:-1]:
        done = tool_server().run(*stage.command[1:], **dict(stage.environment))
        assert done.code == 0 and stage.done, done.err
    return run


def test_from_data_to_a_table(tool: ModuleType, made: Run, at_root: None, capsys: pytest.CaptureFixture) -> None:
    table = first_line("table2")
    stages = table_plan(table, made)
    assert "| data/synthetic " in tool.describe(table, made, stages, 0) and "4 stages: 3 done, 1 to run" in tool.describe(
        table, made, stages, 0
    )
    tool.fill(table, made, stages, [], jobs=2)
    folder = Path(made.folder)
    printed = capsys.readouterr().out
    text = (folder / "table2.md").read_text()
    assert (
        text in printed
        and "| 2 frames | ic_me_video | 32.9 54.4 35.0 34.1 40.8 |" in text
        and "not run" not in text
        and "other settings" not in text
    )
    assert "Not the configs' settings: --images 4" in text
    assert "<td>2 frames" in (folder / "table2.html").read_text()
    for name in ("table2.png", "table2_losses.png"):
        assert cv2.imread(str(folder / name)) is not None and name in (folder / "table2.html").read_text()
    assert "4 done, 0 to run" in tool.describe(table, made, stages, 0)
    assert "is older than" not in text
    assert "another command" not in text and (folder / "logs/ic_me_video_seed0_compare.json").exists()
    before = (folder / "ic_me_video/seed0/comparison.json").stat().st_mtime_ns
    tool.fill(table, made, stages, [], jobs=2)
    assert (folder / "ic_me_video/seed0/comparison.json").stat().st_mtime_ns == before


def test_a_failure_is_in_the_table_and_the_log(tool: ModuleType, made: Run, at_root: None, tmp_path: Path) -> None:
    shutil.copytree(Path(made.folder) / "data", tmp_path / "data")
    run = replace(made, folder=str(tmp_path), overrides=(*SHORT, "MODEL.DEVICE", "cuda:99"))
    table = first_line("table2")
    with pytest.raises(PlanError, match=r"ic_me/seed0/train failed with exit code 2"):
        tool.fill(table, run, table_plan(table, run), [], jobs=1)
    log = tmp_path / "logs" / "ic_me_seed0_train.log"
    assert "cuda:99" in log.read_text()
    assert f"failed: ic_me/seed0/train, see {log}" in (tmp_path / "table2.md").read_text()


def test_one_command_a_folder(tool: ModuleType, made: Run, at_root: None) -> None:
    table = first_line("table2")
    with folder_lock(made.folder), pytest.raises(PlanError, match=f"Another command works in {made.folder}"):
        tool.fill(table, made, table_plan(table, made), [], jobs=1)


def test_commands_keep_the_lock(tool: ModuleType, made: Run, at_root: None, tmp_path: Path) -> None:
    """So that one which outlives its parent keeps the next run out."""
    table, score = first_line("table2"), tmp_path / "score.py"
    *done, compare = table_plan(table, made)
    output, kept = Path(compare.outputs[0]), tmp_path / "kept.json"
    output.unlink(missing_ok=True)
    look = "any(os.path.realpath(f'/proc/self/fd/{fd}').endswith('.lock') for fd in os.listdir('/proc/self/fd'))"
    score.write_text(f"import os, sys\nopen({str(kept)!r}, 'w').write(str({look}))\nopen({str(output)!r}, 'w').write('{{}}')")
    tool.fill(table, made, [*done, replace(compare, command=(compare.command[0], str(score), *compare.command[2:]))], [], jobs=1)
    output.unlink()
    assert kept.read_text() == "True"


def test_a_table_that_cannot_be_written_hides_no_failure(
    tool: ModuleType, made: Run, at_root: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full_disk(*_: object) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr(tool, "write", full_disk)
    shutil.copytree(Path(made.folder) / "data", tmp_path / "data")
    run, table = replace(made, folder=str(tmp_path), overrides=(*SHORT, "MODEL.DEVICE", "cuda:99")), first_line("table2")
    with pytest.raises(PlanError, match="ic_me/seed0/train failed"):
        tool.fill(table, run, table_plan(table, run), [], jobs=1)
    assert "The table was not written: No space left on device" in capsys.readouterr().err
    with pytest.raises(OSError, match="No space left"):
        tool.fill(replace(table, rows=()), run, [], [], jobs=1)


def test_command_line(tmp_path: Path) -> None:
    words = ("--output", str(tmp_path / "out"), "--seeds", "0", "1")
    done = tool_server().tool("reproduce", "table1", "--data", "synthetic", *words, "--data-seed", "3", "--dry-run")
    assert done.code == 0 and "73 stages: 0 done, 73 to run" in done.out, "data; 12 trainings, each measured twice, of two seeds"
    assert "| ic_me_video_two_view/seed1/train " in done.out and not (tmp_path / "out").exists()
    done = tool_server().tool("reproduce", "table1", *words, "--only", "ic", "*longer_two*", "--dry-run")
    assert "73 stages: 0 done, 15 to run" in done.out, "data; IC, IC + ME on two views for what starts from it (not measured), and that"
    done = tool_server().tool("reproduce", "table1", *words, "--only", "ic", "nothing*")
    assert done.code == 2 and "--only nothing*: no line of table1 has such a training; they are ic_me, ic, " in done.err
    done = tool_server().tool("reproduce", "table2", *words, "--only", "ic_me")
    assert done.code == 2 and "they are ic_me_video, " in done.err, "Table 2 stands on IC + ME, and no line shows it"
    for options, fault in (("it's", "No closing quotation"), ("--seed 5", "say --data-seed"), ("--videos 2 --out=x", "say --output")):
        done = tool_server().tool("reproduce", "table1", *words, "--data-options", options)
        assert done.code == 2 and fault in done.err
    done = tool_server().tool("reproduce", "table1", "--data", "coco-ytvis", *words, "--data-options", "--videos 3")
    assert done.code == 2 and "this table makes none" in done.err
    assert not (tmp_path / "out").exists()
    done = tool_server().tool("reproduce", "table3", "--data", "coco-ytvis", *words, DETECTRON2_DATASETS=str(tmp_path))
    assert done.code == 0, done.err
    text = (tmp_path / "out/coco-ytvis/table3.md").read_text()
    assert "not run: needs YouTube-VIS 2019, COCO, " in text and "8 GPUs, ≈ 87 GPU hours" in text
    assert tool_server().tool("reproduce", "ablation", "--data", "coco-ytvis").code == 2
