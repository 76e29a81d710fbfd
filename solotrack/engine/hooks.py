"""Training hooks that Detectron2 does not have."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.loader import training_records, training_samples
from ..files import atomic_write
from ..modeling.meta_arch.solo_track import SOLOTrack
from ..modeling.solo.targets import count_unassigned
from .checkpoint import AtomicCheckpointer

__all__ = ["BestCheckpoint", "ReportScaleRanges", "SeedSteps"]


class ReportScaleRanges(HookBase):
    """Log, before training, how many instances no grid cell will learn, and why (METHOD 10, row 6).

    Args:
        cfg: DATASETS.TRAIN and the training augmentation are used.
        model: a SOLOTrack.
        images: how many to look at.
    """

    def __init__(self, cfg: CfgNode, model: SOLOTrack, images: int = 100) -> None:
        self.cfg = cfg
        self.model = model
        self.images = images

    def before_train(self) -> None:
        total = Counter()
        divisor = max(self.model.backbone.size_divisibility, 1)
        for sample in training_samples(self.cfg, training_records(self.cfg, self.images, seed=0), seed=0):
            total["images"] += 1
            height, width = (-(-side // divisor) * divisor for side in sample["image"].shape[-2:])
            total.update(count_unassigned(self.model.assign([sample["instances"].to(self.model.device)], (height, width))))
        lost = total["out_of_range"] + total["overwritten"] + total["empty"]
        logging.getLogger(__name__).log(
            logging.WARNING if lost > 0.1 * total["instances"] else logging.INFO,
            f"Of {total['instances']} instances in {total['images']} training images, {total['out_of_range']} lie outside every range of "
            f"MODEL.SOLO.SCALE_RANGES and {total['overwritten']} lose their grid cells to others (MODEL.SOLO.NUM_GRIDS): "
            "these are not learned.",
        )


class SeedSteps(HookBase):
    """Seed PyTorch before every step from (seed, iteration, process), as the batches are: what a model draws at random in training, such as
    Mask R-CNN's sample of proposals, is then the same in a resumed run.

    Args:
        seed: at least 0.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_step(self) -> None:
        (state,) = np.random.SeedSequence([self.seed, self.trainer.iter, comm.get_rank()]).generate_state(1, np.uint64)
        torch.manual_seed(int(state >> np.uint64(1)))


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
