"""The best weights are kept, whatever comes after them; objects that cannot be learned are told before the training."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from detectron2.engine import TrainerBase, hooks
from torch import nn

from solotrack.data.loader import training_records, training_samples
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.hooks import BestCheckpoint, ReportScaleRanges, SeedSteps
from tests import tiny


class Counting(TrainerBase):
    """Its weight is the number of steps; the metric after each evaluation is looked up."""

    def __init__(self, folder: Path, values: dict[int, float], period: int, metric: str = "segm/AP") -> None:
        super().__init__()
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.checkpointer = AtomicCheckpointer(self.model, str(folder))
        evaluate = hooks.EvalHook(period, lambda: {"segm": {"AP": values[int(self.model.weight)]}})
        self.register_hooks([evaluate, BestCheckpoint(period, self.checkpointer, metric)])

    def run_step(self) -> None:
        with torch.no_grad():
            self.model.weight += 1

    def continue_from(self, step: int) -> None:
        nn.init.constant_(self.model.weight, step)


def best(folder: Path) -> tuple[float, float, int]:
    """Weight, and the value and iteration that are noted."""
    note = json.loads((folder / "model_best.json").read_text())
    return torch.load(folder / "model_best.pth", weights_only=True)["model"]["weight"].item(), note["value"], note["iteration"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({2: 10.0, 4: 30.0, 6: 20.0, 7: 25.0}, (4, 30.0)),
        ({2: 10.0, 4: 30.0, 6: 20.0, 7: 35.0}, (7, 35.0)),  # the evaluation after training counts
        ({2: 30.0, 4: 30.0, 6: 30.0, 7: 30.0}, (2, 30.0)),  # the first of equals
        ({2: NAN, 4: 5.0, 6: NAN, 7: NAN}, (4, 5.0)),
        ({2: 0.0, 4: NAN, 6: NAN, 7: NAN}, (2, 0.0)),
    ],
)
def test_best(tmp_path: Path, values: dict[int, float], expected: tuple[float, float]) -> None:
    Counting(tmp_path, values, period=2).train(0, 7)
    assert best(tmp_path)[:2] == expected
    assert json.loads((tmp_path / "model_best.json").read_text())["metric"] == "segm/AP"
    assert not (tmp_path / "last_checkpoint").exists(), "a resumed run continues from the periodic checkpoints"


def test_last_step_is_compared_once_and_in_its_turn(tmp_path: Path) -> None:
    """With the period's multiple at the end EvalHook evaluates after training only; the value before it must not be taken for the last."""
    Counting(tmp_path, {2: 10.0, 4: 30.0, 6: 20.0}, period=2).train(0, 6)
    assert best(tmp_path)[:2] == (4, 30.0)


def test_no_value_no_file(tmp_path: Path) -> None:
    Counting(tmp_path, {2: NAN, 4: NAN}, period=2).train(0, 4)
    assert os.listdir(tmp_path) == []
    Counting(tmp_path, {2: 1.0, 4: 2.0}, period=2, metric="bbox/AP").train(0, 4)
    assert os.listdir(tmp_path) == []


def test_a_resumed_run_remembers(tmp_path: Path) -> None:
    Counting(tmp_path, {2: 30.0, 4: 20.0}, period=2).train(0, 4)
    resumed = Counting(tmp_path, {6: 25.0, 8: 28.0}, period=2)
    resumed.continue_from(4)
    resumed.train(4, 8)
    assert best(tmp_path)[:2] == (2, 30.0), "worse than what was reached before the stop"
    resumed = Counting(tmp_path, {6: 25.0, 8: 31.0}, period=2)
    resumed.continue_from(4)
    resumed.train(4, 8)
    assert best(tmp_path)[:2] == (8, 31.0)


def test_a_new_run_in_an_old_folder_starts_anew(tmp_path: Path) -> None:
    Counting(tmp_path, {2: 30.0, 4: 20.0}, period=2).train(0, 4)
    Counting(tmp_path, {2: 5.0, 4: 1.0}, period=2).train(0, 4)
    assert best(tmp_path)[:2] == (2, 5.0)


def test_nothing_is_kept_of_a_run_that_fails(tmp_path: Path) -> None:
    class Failing(Counting):
        def run_step(self) -> None:
            super().run_step()
            if self.model.weight == 3:
                raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        Failing(tmp_path, {2: 10.0}, period=2).train(0, 8)
    assert best(tmp_path)[:2] == (2, 10.0)


@pytest.mark.parametrize(("ranges", "level"), [([[1, 256]] * 3, logging.INFO), ([[1, 12]] * 3, logging.WARNING)])
def test_report_of_instances_outside_the_scale_ranges(caplog: pytest.LogCaptureFixture, ranges: list, level: int) -> None:
    cfg = tiny.config({"MODEL.SOLO.SCALE_RANGES": ranges, "MODEL.SOLO.NUM_GRIDS": [64, 64, 64]})
    model = tiny.model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.INFO, "solotrack.engine.hooks"):
        ReportScaleRanges(cfg, model, images=10).before_train()
    instances = [x["instances"] for x in training_samples(cfg, training_records(cfg, 10, 0), seed=0)]
    sides = torch.cat([x.gt_boxes.tensor for x in instances]).view(-1, 2, 2).diff(dim=1)[:, 0]
    outside = int((sides.prod(dim=1).sqrt() > ranges[0][1]).sum())
    (record,) = (x for x in caplog.records if x.name == "solotrack.engine.hooks")
    assert record.getMessage().startswith(f"Of {len(sides)} instances in 10 training images, {outside} lie outside every range")
    assert record.levelno == level and (outside > 0) == (level == logging.WARNING)
    assert not tiny.difference(before, model.state_dict())


def test_what_a_step_draws_is_decided_by_seed_and_iteration() -> None:
    class Drawing(TrainerBase):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.drawn: dict[int, float] = {}
            self.register_hooks([SeedSteps(seed)])

        def run_step(self) -> None:
            self.drawn[self.iter] = torch.rand(1).item()

    def run(seed: int, start: int, stop: int) -> dict[int, float]:
        trainer = Drawing(seed)
        trainer.train(start, stop)
        return trainer.drawn

    whole = run(3, 0, 5)
    torch.manual_seed(99)
    assert run(3, 2, 5) == {i: whole[i] for i in (2, 3, 4)}
    assert len(set(whole.values()) | set(run(4, 0, 5).values())) == 10
