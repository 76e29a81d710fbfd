from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from tests.toolserver import tool_server

SMALL = [
    "--seed",
    "3",
    "--images",
    "4",
    "--val-images",
    "1",
    "--videos",
    "2",
    "--unlabelled-videos",
    "1",
    "--frames",
    "4",
    "--size",
    "64",
    "--quiet",
]


@pytest.fixture(scope="module")
def main(repo_root: Path) -> Callable[[list[str]], int]:
    # By its path: Detectron2's wheel installs a package that is called "tools", too.
    spec = importlib.util.spec_from_file_location("prepare_data", repo_root / "tools" / "prepare_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_synthetic_writes_data_and_sheets(main: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["synthetic", "--output", str(tmp_path / "data"), *SMALL, "--workers", "1"]
    assert main(command) == 0
    assert "written" in capsys.readouterr().out
    assert json.loads((tmp_path / "data/stats.json").read_text())["test"]["videos"] == 2
    train, test = (cv2.imread(str(tmp_path / "data/contact_sheets" / f"{split}.png")) for split in ("train", "test"))
    assert train.shape == (4 + 132, 4 + 4 * 132, 3)  # four images at double size
    assert test.shape[0] == 4 + 2 * (16 + 132) and test.shape[1] >= 4 + 4 * 132  # a row a video, under its caption

    # A second run changes nothing, but draws a sheet that is missing.
    (tmp_path / "data/contact_sheets/test.png").unlink()
    stamp = (tmp_path / "data/synthetic.json").stat().st_mtime_ns
    assert main(command) == 0
    assert "already there" in capsys.readouterr().out
    assert (tmp_path / "data/synthetic.json").stat().st_mtime_ns == stamp
    assert (cv2.imread(str(tmp_path / "data/contact_sheets/test.png")) == test).all()


def test_errors_name_the_remedy(main: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    for arguments, message in (
        (["--output", str(tmp_path / "data"), *SMALL, "--speed", "9"], "speed must be from 0.05 to 3; got 9.0"),
        (["--output", str(tmp_path / "other"), *SMALL], "name another folder"),
    ):
        assert main(["synthetic", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["synthetic", "--output", str(tmp_path / "data")])
    assert stop.value.code == 2 and "--seed" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_help_teaches(repo_root: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    script = str(repo_root / "tools" / "prepare_data.py")
    result = subprocess.run([sys.executable, script, "synthetic", "--help"], env=environment, capture_output=True, text=True, check=True)
    for word in ("COCO", "YouTube-VIS", "--speed", "--shift", "example:", "default: 2000"):
        assert word in result.stdout


def test_ytvis_split(repo_root: Path, tmp_path: Path) -> None:
    """The tool finds the set and writes names relative to the data folder, in either of its layouts."""
    folder = tmp_path / "data" / "ytvis_2019"
    for number in range(1, 6):
        frame = folder / "train" / "JPEGImages" / str(number) / "0.jpg"
        frame.parent.mkdir(parents=True)
        frame.touch()
    videos = [{"id": n, "height": 4, "width": 4, "length": 1, "file_names": [f"{n}/0.jpg"]} for n in range(1, 6)]
    annotations = [{"id": n, "video_id": n, "category_id": 1} for n in range(1, 6)]
    content = {"videos": videos, "categories": [{"id": 1, "name": "person"}], "annotations": annotations}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train_sub.json").write_text(json.dumps(content))
    environment = {"DETECTRON2_DATASETS": str(tmp_path / "data")}
    done = tool_server().tool("prepare_data", "ytvis-split", "--output", str(tmp_path / "split"), "--held-out", "2", **environment)
    assert done.code == 0 and "3 videos to learn from, 2 held out" in done.out, done.err
    held_out = json.loads((tmp_path / "split" / "held_out.json").read_text())
    assert all((tmp_path / "data" / name).exists() for video in held_out["videos"] for name in video["file_names"])
    done = tool_server().tool("prepare_data", "ytvis-split", "--output", str(tmp_path / "x"), DETECTRON2_DATASETS=str(tmp_path))
    assert done.code == 2 and "ytvis_2019_train is not here" in done.err


def test_mosaics(main: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["synthetic", "--output", str(tmp_path / "data"), *SMALL, "--workers", "1"]) == 0
    words = ["mosaic", "--annotations", str(tmp_path / "data/train.json"), "--images", str(tmp_path / "data/train")]
    words += ["--output", str(tmp_path / "mosaics"), "--count", "3", "--seed", "0", "--height", "60", "--width", "90"]
    assert main(words) == 0
    made = json.loads((tmp_path / "mosaics/train.json").read_text())
    assert f"3 mosaics with {len(made['annotations'])} objects" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "mosaics" / made["images"][2]["file_name"])).shape == (60, 90, 3)
    words[2] = str(tmp_path / "none.json")
    assert main(words) == 2
    assert "none.json" in capsys.readouterr().err
