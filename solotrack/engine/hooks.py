"""Training hooks that Detectron2 does not have."""

from __future__ import annotations

import json
import logging
import math
import os

from detectron2.engine import HookBase

from ..files import atomic_write
from .checkpoint import AtomicCheckpointer

__all__ = ["BestCheckpoint"]


class BestCheckpoint(HookBase):
    """Keep the weights with the best value of a metric as ``model_best.pth``; register it after the EvalHook.

    Unlike Detectron2's hook it remembers the best value over a resume, in ``model_best.json``.

    Args:
        period: iterations between evaluations, as the EvalHook's.
        checkpointer: saves the weights.
        metric: name in the event storage; larger is better.
    """

    def __init__(self, period: int, checkpointer: AtomicCheckpointer, metric: str = "segm/AP") -> None:
        self.period = period
        self.checkpointer = checkpointer
        self.metric = metric
        self.note = os.path.join(checkpointer.save_dir, "model_best.json")
        self.best = -math.inf

    def before_train(self) -> None:
        if self.trainer.start_iter > 0 and os.path.isfile(self.note):
            with open(self.note, encoding="utf-8") as file:
                self.best = json.load(file)["value"]

    def after_step(self) -> None:
        due = self.period > 0 and (self.trainer.iter + 1) % self.period == 0
        if due and self.trainer.iter + 1 != self.trainer.max_iter:
            self._compare()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # not after a failure
            self._compare()

    def _compare(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (math.nan, 0))
        if not value > self.best:  # also False for NaN
            return
        self.best = value
        self.checkpointer.save("model_best", tag=False)  # a resumed run continues from the periodic checkpoints
        with atomic_write(self.note) as file:
            json.dump({"metric": self.metric, "value": value, "iteration": iteration}, file)
        logging.getLogger(__name__).info(f"Best {self.metric} so far: {value:.3f} at iteration {iteration}.")
