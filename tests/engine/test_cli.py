"""How a tool ends, whatever it does."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from solotrack.data.annotation_file import DatasetError
from solotrack.engine.cli import add_config_options, config_words, run_tool
from solotrack.errors import SoloTrackError


def end(fault: BaseException | None, **options: str) -> int:
    def run(args: argparse.Namespace) -> None:
        assert args.word == "a"
        if fault is not None:
            raise fault

    parser = argparse.ArgumentParser()
    parser.add_argument("word")
    return run_tool(run, parser, ["a"], **options)


def test_nothing_is_said_of_success(capsys: pytest.CaptureFixture) -> None:
    assert end(None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("fault", [SoloTrackError("Do this."), DatasetError("Do this."), FileNotFoundError("Do this.")])
def test_a_fault_is_a_sentence(fault: Exception, capsys: pytest.CaptureFixture) -> None:
    assert end(fault) == 2
    assert capsys.readouterr() == ("", "error: Do this.\n")


def test_ctrl_c(capsys: pytest.CaptureFixture) -> None:
    assert end(KeyboardInterrupt(), interrupted="Go on later.") == 130
    assert capsys.readouterr() == ("", "\nGo on later.\n")


def test_what_is_no_fault_of_the_user_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        end(ZeroDivisionError())


class Broken(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DatasetError("set.json: correct it: now.")


def test_a_fault_in_a_worker_process_is_the_same_sentence(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(DatasetError) as caught:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert end(caught.value) == 2
    assert capsys.readouterr().err == "error: set.json: correct it: now.\n"


def test_weights_win_over_the_overrides() -> None:
    parser = argparse.ArgumentParser()
    add_config_options(parser)
    args = parser.parse_args(["--weights", "w.pth", "--config-file", "c.yaml", "SEED", "3", "MODEL.WEIGHTS", "other.pth"])
    assert args.config_file == "c.yaml"
    assert config_words(args) == ["SEED", "3", "MODEL.WEIGHTS", "other.pth", "MODEL.WEIGHTS", "w.pth"]
    args = parser.parse_args(["--config-file", "c.yaml", "MODEL.WEIGHTS", "other.pth"])
    assert config_words(args) == ["MODEL.WEIGHTS", "other.pth"]


@pytest.mark.parametrize("tool", ["track_video", "evaluate"])
def test_the_libraries_say_nothing_when_a_tool_starts(repo_root: Path, tool: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"} | {"PYTHONPATH": str(repo_root)}
    command = [sys.executable, str(repo_root / "tools" / f"{tool}.py"), "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "usage" in done.stdout and not done.stderr
