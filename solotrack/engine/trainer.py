"""Training: Detectron2's trainer with resumable data, AMP on any device and errors that name the images."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import OrderedDict
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from ..data.loader import build_train_loader
from ..errors import SoloTrackError
from .calibration import CalibrateNullLogit
from .checkpoint import AtomicCheckpointer
from .evaluation import evaluate
from .hooks import BestCheckpoint, ReportScaleRanges, SeedSteps
from .streaming import amp_dtype

__all__ = ["NonFiniteLossError", "Trainer", "TrainingStep", "build_optimizer"]


class NonFiniteLossError(SoloTrackError, FloatingPointError):
    """A loss became infinite or NaN; the message names the batch's image files."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW with Detectron2's parameter groups (SOLVER.WEIGHT_DECAY_NORM, BIAS_LR_FACTOR, ...) and SOLVER.BACKBONE_LR_FACTOR.

    Detectron2's own gradient clipping ("norm" and "value", parameter by parameter) is part of it; "full_model" is :class:`TrainingStep`'s.
    """
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=partial(_lr_factor, cfg),  # get_default_optimizer_params' own factor of biases would replace it
    )
    if solver.OPTIMIZER == "SGD":
        make = partial(torch.optim.SGD, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, foreach=True)
    else:
        make = torch.optim.AdamW
    optimizer = make(params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    return optimizer if solver.CLIP_GRADIENTS.CLIP_TYPE == "full_model" else maybe_add_gradient_clipping(cfg, optimizer)


def _lr_factor(cfg: CfgNode, name: str) -> float:
    """Learning rate of a parameter / SOLVER.BASE_LR."""
    factor = cfg.SOLVER.BACKBONE_LR_FACTOR if name.startswith("backbone.bottom_up.") else 1.0
    return factor * cfg.SOLVER.BIAS_LR_FACTOR if name.endswith(".bias") else factor


class TrainingStep(SimpleTrainer):
    """One optimisation step, with mixed precision where asked for.

    Args:
        model, data_loader, optimizer: as for ``SimpleTrainer``.
        device_type: "cuda" or "cpu".
        dtype: of autocast regions; None runs in float32. float16 gets loss scaling.
        max_norm: L2 norm that the gradients of all parameters together are scaled down to; None leaves them.
        gather_metric_period: steps between two readings of the single terms for the log.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        device_type: str,
        dtype: torch.dtype | None,
        max_norm: float | None = None,
        gather_metric_period: int = 1,
    ) -> None:
        super().__init__(model, data_loader, optimizer, gather_metric_period)
        self.device_type = device_type
        self.dtype = dtype
        self.max_norm = max_norm
        self.scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        """
        Raises:
            NonFiniteLossError: before anything non-finite reaches a weight, or a gradient of another process.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        try:
            with torch.autocast(self.device_type, dtype=self.dtype) if self.dtype else contextlib.nullcontext():
                loss_dict = self.model(batch)
        except FloatingPointError as error:  # a detector that looks at its predictions before it has losses
            raise self._non_finite(f"{str(error).rstrip('.')}, at iteration {self.iter}.", batch) from error
        total = sum(loss_dict.values())
        if not torch.isfinite(total.detach()):  # the one wait for the device in a step
            terms = {name: loss.item() for name, loss in loss_dict.items()}
            raise self._non_finite(f"The losses are not finite at iteration {self.iter}: {terms}.", batch)
        self.scaler.scale(total).backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        if self.max_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
            # With loss scaling an overflow is part of the search for the scale, and the scaler leaves the step out.
            if not self.scaler.is_enabled() and not torch.isfinite(norm):
                raise self._non_finite(f"The gradients are not finite at iteration {self.iter}, though the losses are.", batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @staticmethod
    def _non_finite(what: str, batch: list[dict]) -> NonFiniteLossError:
        files = "\n  ".join(name for x in batch for name in x.get("file_names") or [x["file_name"]])  # a clip has several
        return NonFiniteLossError(
            f"{what}\nThe batch's images:\n  {files}\n"
            "Look at them and their annotations, or lower SOLVER.BASE_LR; then continue from the last checkpoint with --resume."
        )

    def state_dict(self) -> dict:
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        if self.scaler.is_enabled() and state_dict["scaler"]:  # else mixed precision was switched on or off in between
            self.scaler.load_state_dict(state_dict["scaler"])


class Trainer(DefaultTrainer):
    """Trains ``cfg.MODEL.META_ARCHITECTURE``; ``resume_or_load`` continues exactly where the last checkpoint stands."""

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        device_type = torch.device(cfg.MODEL.DEVICE).type
        # FPN outputs that no head reads have a convolution without gradients, which DistributedDataParallel must be told of.
        # So has a video branch that is there for test-time adaptation only.
        unread = not set(model.backbone.output_shape()) <= set(model.in_features)
        unread |= cfg.MODEL.SOLO_TRACK.VIDEO.ENABLED and not cfg.SOLVER.CLIPS_PER_BATCH
        processes = {"device_ids": None} if device_type == "cpu" else {}
        model = create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=unread, **processes)
        # Reading the terms makes the host wait for a GPU; every 20 steps is what the writers print.
        period = 1 if device_type == "cpu" else 20
        clip = cfg.SOLVER.CLIP_GRADIENTS
        max_norm = clip.CLIP_VALUE if clip.ENABLED and clip.CLIP_TYPE == "full_model" else None
        self._trainer = TrainingStep(model, self.build_train_loader(cfg), optimizer, device_type, amp_dtype(cfg), max_norm, period)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = AtomicCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        if self.start_iter > 0:
            self._trainer.reset_data_loader(lambda: build_train_loader(self.cfg, start_iter=self.start_iter))

    def build_hooks(self) -> list[hooks.HookBase | None]:
        cfg = self.cfg
        result = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.SEED >= 0:
            result.append(SeedSteps(cfg.SEED))
        solo = cfg.MODEL.META_ARCHITECTURE == "SOLOTrack"
        if solo and comm.is_main_process():
            result.append(ReportScaleRanges(cfg, self._trainer.model.module if comm.get_world_size() > 1 else self._trainer.model))
        if solo and cfg.MODEL.SOLO_TRACK.EMB.ENABLED and cfg.TRACKER_HEADS.CALIBRATION.ENABLED:
            result.append(CalibrateNullLogit(cfg, self.model, (cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD)))
        if comm.is_main_process():
            result.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_iter=self.max_iter))
        if cfg.DATASETS.TEST:
            result.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate))
            if comm.is_main_process() and cfg.TEST.EVAL_PERIOD > 0:
                first = f"{cfg.DATASETS.TEST[0]}/" if len(cfg.DATASETS.TEST) > 1 else ""
                result.append(BestCheckpoint(cfg.TEST.EVAL_PERIOD, self.checkpointer, f"{first}segm/AP"))
        if comm.is_main_process():
            result.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return result

    def _evaluate(self) -> OrderedDict:
        self._last_eval_results = evaluate(self.cfg, self.model)
        return self._last_eval_results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        return evaluate(cfg, model)
