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
