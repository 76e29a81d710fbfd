"""One step of training, in this process: losses and gradients that are no numbers, clipping, mixed precision and the optimiser."""

from __future__ import annotations

import pytest
import torch
from detectron2.solver.build import GradientClipType
from detectron2.utils.events import EventStorage

from solotrack.data.loader import build_train_loader
from solotrack.engine.trainer import NonFiniteLossError, TrainingStep, build_optimizer
from tests import tiny


def steps(changes: dict | None = None, max_norm: float | None = None, lr: float = 1.0, dtype: torch.dtype | None = None) -> TrainingStep:
    cfg = tiny.config(changes)
    model = tiny.model(cfg)
    return TrainingStep(model, build_train_loader(cfg), torch.optim.SGD(model.parameters(), lr=lr), "cpu", dtype, max_norm)


def test_a_bad_step_changes_no_weight() -> None:
    trainer = steps()
    good = trainer.model.forward
    trainer.model.forward = lambda batch: good(batch) | {"loss_mask": good(batch)["loss_mask"] * float("inf")}
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    with EventStorage(0), pytest.raises(NonFiniteLossError, match=r"train/\d+\.jpg\n"):
        trainer.run_step()
    assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())


def test_a_detector_that_sees_the_divergence_first() -> None:
    trainer = steps()

    def diverged(batch: list[dict]) -> dict[str, torch.Tensor]:
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")

    trainer.model.forward = diverged
    with EventStorage(0), pytest.raises(NonFiniteLossError, match=r"(?s)contain Inf/NaN, at iteration 0\..*train/\d+\.jpg\n"):
        trainer.iter = 0
        trainer.run_step()


def test_a_gradient_that_is_not_a_number_stops_before_the_step() -> None:
    """Finite losses with a NaN gradient: sqrt at 0. All files of the batch are named, those of clips too."""

    class Root(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
            return {"loss": (0 * self.weight).sqrt().sum() * batch[0]["factor"]}

    model = Root()
    batch = [{"file_name": "a.jpg", "factor": 1.0}, {"frames": [], "file_names": ["b/0.jpg", "c.mp4#7"]}]
    step = TrainingStep(model, [batch], torch.optim.SGD(model.parameters(), 0.1), "cpu", None, 35.0)
    named = r"(?s)gradients are not finite.*images:\n  a\.jpg\n  b/0\.jpg\n  c\.mp4#7\nLook"
    with EventStorage(0), pytest.raises(NonFiniteLossError, match=named):
        step.iter = 0
        step.run_step()
    assert model.weight.tolist() == [1, 1]


def moved(trainer: TrainingStep) -> float:
    """Length of a step of all weights together."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with EventStorage(0):
        trainer.run_step()
    return torch.cat([(p - before[name]).flatten() for name, p in trainer.model.named_parameters()]).norm().item()


def test_gradients_of_the_full_model_are_clipped_together() -> None:
    free = moved(steps())
    assert free > 0.2
    assert moved(steps(max_norm=0.1)) == pytest.approx(0.1, rel=1e-3)
    assert moved(steps(max_norm=2 * free)) == pytest.approx(free, rel=1e-5)


def test_scaled_losses_step_as_far() -> None:
    """float16 scales the loss; clipping sees the gradients' true size."""
    assert moved(steps(max_norm=0.1, dtype=torch.float16)) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("kind", ["SGD", "ADAMW"])
@pytest.mark.parametrize("clip", ["full_model", "norm", "value"])
def test_optimizer(kind: str, clip: str) -> None:
    changes = {
        "SOLVER.OPTIMIZER": kind,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": clip,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1e-3,
        "SOLVER.WEIGHT_DECAY": 0.02,
        "SOLVER.WEIGHT_DECAY_NORM": 0.005,
        "SOLVER.BASE_LR": 0.5,
        "SOLVER.MOMENTUM": 0.8,
    }
    cfg = tiny.config(changes)
    assert clip == "full_model" or GradientClipType(clip)
    model = tiny.model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD if kind == "SGD" else torch.optim.AdamW)
    assert kind == "ADAMW" or all(group["momentum"] == 0.8 for group in optimizer.param_groups)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == {id(p) for p in model.parameters()}
    assert decay[id(model.head.category_out.weight)] == 0.02
    assert decay[id(model.head.category_tower[0].norm.weight)] == 0.005
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)

    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    largest = max(p.grad.abs().max().item() for p in model.parameters())
    norms = [p.grad.norm().item() for p in model.parameters()]
    assert (largest == 1) == (clip == "full_model"), "the full model is clipped by the training step"
    assert clip != "value" or largest == pytest.approx(1e-3)
    assert clip != "norm" or norms == pytest.approx([1e-3] * len(norms), rel=1e-2)


def test_a_slower_backbone() -> None:
    model = tiny.model(tiny.config())
    cfg = tiny.config({"SOLVER.BASE_LR": 0.5, "SOLVER.BACKBONE_LR_FACTOR": 0.1})
    rates = {id(p): group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    pretrained = {id(p) for p in model.backbone.bottom_up.parameters()}
    assert pretrained < rates.keys() == {id(p) for p in model.parameters()}
    assert all(rate == (0.05 if key in pretrained else 0.5) for key, rate in rates.items())

    cfg.SOLVER.BIAS_LR_FACTOR = 2.0
    fast = {id(p): group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    biases = {id(p) for name, p in model.named_parameters() if name.endswith(".bias")}
    assert biases & pretrained and biases - pretrained and rates.keys() - biases
    assert fast == pytest.approx({key: 2 * rate if key in biases else rate for key, rate in rates.items()})
