"""Training as users start it: tools/train_net.py, killed, resumed, poisoned, frozen, in mixed precision and in several processes."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.solver.build import GradientClipType
from detectron2.utils.events import EventStorage

from solotrack.data.loader import build_train_loader
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.trainer import NonFiniteLossError, TrainingStep, build_optimizer
from tests import tiny
from tests.toolserver import Finished, tool_server

STEPS = tiny.CONFIG["SOLVER.MAX_ITER"]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Finished]:
    """Run tools/train_net.py with the tiny config and changes of it; the output folder is ``tmp_path / name``."""

    def run(name: str, changes: dict | None = None, *options: str, setup: str = "") -> Finished:
        config = tiny.write_config(tmp_path / f"{name}.yaml", {"OUTPUT_DIR": str(tmp_path / name)} | (changes or {}))
        return tool_server().tool("train_net", "--config-file", config, *options, setup=setup)

    return run


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same(a: object, b: object) -> bool:
    """Bitwise equality of nested states; NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ---- resuming

KILL = """
import os, signal
from solotrack.engine.trainer import TrainingStep

def after_backward(self, original=TrainingStep.after_backward):
    original(self)
    if self.iter == {step}:
        os.kill(os.getpid(), signal.SIGKILL)

TrainingStep.after_backward = after_backward
"""


CLIPS = {
    "MODEL.SOLO_TRACK.VIDEO.ENABLED": True,
    "MODEL.SOLO_TRACK.VIDEO.NODE_SCORE": 0.0,
    "MODEL.SOLO_TRACK.VIDEO.PSEUDO_WEIGHT": 1.0,
    "MODEL.SOLO_TRACK.VIDEO.PSEUDO_THRESH": 0.1,
    "SOLVER.CLIPS_PER_BATCH": 2,
    "DATASETS.TRAIN_CLIPS": ["tiny_unlabelled"],
    "INPUT.CLIPS.MIN_SIZE_TRAIN": [tiny.SIZE],
}


@pytest.mark.parametrize(("views", "workers"), [(1, 0), (2, 0), (2, 1)])
def test_a_killed_run_ends_as_an_unbroken_one(train: Callable[..., Finished], tmp_path: Path, views: int, workers: int) -> None:
    """Killed at two random steps, the first perhaps before there is a checkpoint, and resumed: the same weights and state, bit for bit."""
    changes = {
        **tiny.detect_everything(),
        "MODEL.SOLO_TRACK.EMB.VIEWS": views,
        "DATALOADER.NUM_WORKERS": workers,
        "INPUT.AUG.COLOR": 0.5,
        "INPUT.COPY_PASTE.PROB": 0.5 * workers,
        "MODEL.SOLO_TRACK.EMB.QUEUE": 30 * workers,
        **(CLIPS if workers else {}),
        "DATASETS.TEST": ["tiny_test"] if views == 2 else [],
        "TEST.EVAL_PERIOD": 2,
    }
    done = train("unbroken", changes)
    assert done.code == 0, done.err
    first, second = sorted(random.Random(10 * views + workers).sample(range(STEPS), 2))
    for step in (first, second):
        assert train("broken", changes, "--resume", setup=KILL.format(step=step)).code == -signal.SIGKILL
        assert not (tmp_path / "broken" / "model_final.pth").exists()
    done = train("broken", changes, "--resume")
    assert done.code == 0, done.err
    started = [int(line.split()[-1]) for line in (tmp_path / "broken" / "log.txt").read_text().splitlines() if "Starting training" in line]
    assert started == [0, first // 3 * 3, second // 3 * 3], "each began after the last checkpoint"
    unbroken, broken = (load(tmp_path / name / "model_final.pth") for name in ("unbroken", "broken"))
    assert not tiny.difference(unbroken["model"], broken["model"])
    assert unbroken["iteration"] == broken["iteration"] == STEPS - 1
    assert same(unbroken["trainer"], broken["trainer"]), "optimiser and schedule"
    untrained = tiny.model(tiny.config(changes)).state_dict()
    assert len(tiny.difference(untrained, broken["model"])) > len(untrained) / 2
    if views == 2:
        notes = [json.loads((tmp_path / name / "model_best.json").read_text()) for name in ("unbroken", "broken")]
        assert notes[0] == notes[1] and notes[0]["value"] >= 0
        best = [load(tmp_path / name / "model_best.pth")["model"] for name in ("unbroken", "broken")]
        assert not tiny.difference(*best)


def test_a_longer_run_continues_a_finished_one(train: Callable[..., Finished], tmp_path: Path) -> None:
    """With a constant rate: 8 steps in one go are 4 steps and 4 more, whatever was the best in between."""
    changes = {"SOLVER.WARMUP_ITERS": 0, "DATASETS.TEST": ["tiny_test"], "TEST.EVAL_PERIOD": 2}
    assert train("once", changes).code == 0
    assert train("twice", changes | {"SOLVER.MAX_ITER": 4}).code == 0
    assert (tmp_path / "twice" / "last_checkpoint").read_text() == "model_final.pth"
    assert train("twice", changes, "--resume").code == 0
    once, twice = (load(tmp_path / name / "model_final.pth") for name in ("once", "twice"))
    assert once["iteration"] == twice["iteration"] == STEPS - 1
    assert not tiny.difference(once["model"], twice["model"])


def test_without_resume_an_old_folder_is_no_start(train: Callable[..., Finished], tmp_path: Path) -> None:
    assert train("a", {"SOLVER.MAX_ITER": 2}).code == 0
    before = load(tmp_path / "a" / "model_final.pth")["model"]
    assert train("a", {"SOLVER.MAX_ITER": 2}).code == 0
    assert not tiny.difference(before, load(tmp_path / "a" / "model_final.pth")["model"]), "the same seed, from the start"


def test_the_best_of_several_test_sets_is_the_first_s(train: Callable[..., Finished], tmp_path: Path) -> None:
    changes = {**tiny.detect_everything(), "DATASETS.TEST": ["tiny_test", "tiny_val"], "TEST.EVAL_PERIOD": 4, "SOLVER.MAX_ITER": 4}
    assert train("a", changes).code == 0
    assert json.loads((tmp_path / "a" / "model_best.json").read_text())["metric"] == "tiny_test/segm/AP"


# ---- losses that are not numbers


def test_a_loss_that_is_not_a_number_names_the_images(train: Callable[..., Finished], tmp_path: Path) -> None:
    model = tiny.model(tiny.config())
    torch.nn.init.constant_(model.head.category_out.weight, float("nan"))
    AtomicCheckpointer(model, str(tmp_path)).save("poisoned")
    done = train("a", {"MODEL.WEIGHTS": str(tmp_path / "poisoned.pth")})
    assert done.code == 2 and "Traceback" not in done.err
    message = done.err[done.err.index("error: ") :]
    assert message.startswith("error: The losses are not finite at iteration 0:") and "loss_category" in message
    (batch,) = (x for _, x in zip(range(1), build_train_loader(tiny.config()), strict=False))
    listed = message[message.index("The batch's images:") :]
    assert [line.strip() for line in listed.splitlines()[1:3]] == [x["file_name"] for x in batch]
    assert "lower SOLVER.BASE_LR" in listed and "--resume" in listed
    assert not list((tmp_path / "a").glob("*.pth"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(train: Callable[..., Finished], tmp_path: Path, workers: int) -> None:
    """Also from a loader's process, from where errors come with a traceback in their text."""
    images = tmp_path / "images"
    images.mkdir()
    for path in (tiny.data_root() / "train").iterdir():
        content = path.read_bytes()
        (images / path.name).write_bytes(content[: len(content) // 2])
    changes = {
        "DATASETS.CUSTOM.IMAGES": [["damaged", str(tiny.data_root() / "train.json"), str(images)]],
        "DATASETS.TRAIN": ["damaged"],
        "DATALOADER.NUM_WORKERS": workers,
    }
    not_before = "import solotrack.engine.hooks as hooks; hooks.ReportScaleRanges.before_train = lambda self: None"
    done = train("a", changes, setup=not_before)
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert done.err.splitlines()[-1].startswith(f"error: The frame {images}/0000") and "copy or extract it again" in done.err


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("a frame cut short", "error: The frame {clips}/v/2.jpg cannot be read"),
        ("a video cut short", "error: None of the 1 videos of DATASETS.TRAIN_CLIPS (cut) has INPUT.CLIPS.FRAMES (4) frames"),
    ],
)
def test_clips_that_cannot_be_read(train: Callable[..., Finished], tmp_path: Path, fault: str, text: str) -> None:
    frames = sorted((tiny.data_root() / "videos" / "unlabelled").rglob("*.jpg"))[: tiny.FRAMES]
    (tmp_path / "clips" / "v").mkdir(parents=True)
    for number, path in enumerate([*frames, frames[0]] if fault == "a frame cut short" else frames):
        content = path.read_bytes()
        whole = fault != "a frame cut short" or number != 2
        (tmp_path / "clips" / "v" / f"{number}.jpg").write_bytes(content if whole else content[: len(content) // 2])
    changes = CLIPS | {
        "DATASETS.CUSTOM.CLIPS": [["cut", str(tmp_path / "clips")]],
        "DATASETS.TRAIN_CLIPS": ["cut"],
        "INPUT.CLIPS.FRAMES": 4,
    }
    done = train("a", changes)
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert text.format(clips=tmp_path / "clips") in done.err.splitlines()[-1]


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


# ---- one step


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


# ---- ways to train


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_mixed_precision_on_a_cpu(train: Callable[..., Finished], tmp_path: Path, dtype: str) -> None:
    changes = {**tiny.detect_everything(), "SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": dtype, "DATASETS.TEST": ["tiny_test"]}
    done = train("a", changes)
    assert done.code == 0, done.err
    final = load(tmp_path / "a" / "model_final.pth")
    assert all(value.isfinite().all() for name, value in final["model"].items() if "null_logit" not in name)
    assert bool(final["trainer"]["_trainer"]["scaler"]) == (dtype == "float16")
    exact = tiny.model(tiny.config(changes)).state_dict()
    assert all(value.dtype == exact[name].dtype for name, value in final["model"].items()), "weights stay in float32"
    assert train("a", changes | {"SOLVER.MAX_ITER": STEPS + 2}, "--resume").code == 0


def test_a_frozen_detector_stays_bit_for_bit(train: Callable[..., Finished], tmp_path: Path) -> None:
    AtomicCheckpointer(tiny.model(tiny.config(), seed=3), str(tmp_path)).save("start")
    done = train("a", {"MODEL.WEIGHTS": str(tmp_path / "start.pth"), "MODEL.SOLO.FREEZE": True, "SOLVER.WEIGHT_DECAY": 0.1})
    assert done.code == 0, done.err
    start, final = (load(path)["model"] for path in (tmp_path / "start.pth", tmp_path / "a" / "model_final.pth"))
    changed = tiny.difference(start, final)
    assert all(name.startswith("embedding_head.") for name in changed)
    assert {name for name in final if name.startswith("embedding_head.") and "null_logit" not in name} == set(changed)
    assert any("running_mean" in name for name in final)


@pytest.mark.parametrize("views", [1, 2])
def test_images_without_anything_to_learn(train: Callable[..., Finished], tmp_path: Path, views: int) -> None:
    """No annotation, crowds only, and objects that no grid cell takes, one a batch."""
    data = json.loads((tiny.data_root() / "train.json").read_text())
    data["images"] = data["images"][:3]
    crowds = [a | {"iscrowd": 1} for a in data["annotations"] if a["image_id"] == 2]
    small = [a for a in data["annotations"] if a["image_id"] == 3]
    (tmp_path / "odd.json").write_text(json.dumps(data | {"annotations": crowds + small}))
    changes = {
        "DATASETS.CUSTOM.IMAGES": [["odd", str(tmp_path / "odd.json"), str(tiny.data_root() / "train")]],
        "DATASETS.TRAIN": ["odd"],
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "SOLVER.IMS_PER_BATCH": 1,
        "MODEL.SOLO.SCALE_RANGES": [[500, 600]] * 3,
        "MODEL.SOLO_TRACK.EMB.VIEWS": views,
    }
    done = train("a", changes)
    assert done.code == 0, done.err  # a loss that is not finite would have ended it
    final = load(tmp_path / "a" / "model_final.pth")["model"]
    assert all(value.isfinite().all() for name, value in final.items() if "null_logit" not in name)


# ---- another network


@pytest.mark.parametrize("network", [tiny.masktrack, tiny.sipmask])
def test_networks_that_learn_from_videos(train: Callable[..., Finished], tmp_path: Path, network: Callable[[], dict[str, object]]) -> None:
    """Pairs of labelled frames in, scored videos out; a killed run ends as an unbroken one: what is drawn is drawn by iteration."""
    changes = {
        **network(),
        "MODEL.SIPMASK.SCORE_THRESH": 0.0,
        "TRACKER_HEADS.SCORE_THRESH": 0.0,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
    }
    done = train("unbroken", changes | {"DATASETS.TEST": ["tiny_test"]})
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "unbroken/inference/tiny_test/results.json").read_text())
    assert {track["video_id"] for track in results} == {1, 2}
    assert train("broken", changes, setup=KILL.format(step=3)).code == -signal.SIGKILL
    assert train("broken", changes, "--resume").code == 0
    unbroken, broken = (load(tmp_path / name / "model_final.pth") for name in ("unbroken", "broken"))
    assert not tiny.difference(unbroken["model"], broken["model"])
    other = train("other", changes | {"SEED": 1, "SOLVER.AMP.ENABLED": True})
    assert other.code == 0, other.err
    assert tiny.difference(unbroken["model"], load(tmp_path / "other" / "model_final.pth")["model"])


# ---- several processes


def test_two_processes_without_a_gpu(train: Callable[..., Finished], tmp_path: Path) -> None:
    """They train together and share out the videos; the evaluation is that of one process."""
    model = tiny.model(tiny.config(tiny.detect_everything()), spread=0.3)
    AtomicCheckpointer(model, str(tmp_path)).save("start")
    changes = {
        **tiny.detect_everything(),
        "MODEL.WEIGHTS": str(tmp_path / "start.pth"),
        "DATASETS.TEST": ["tiny_test"],
        "SOLVER.MAX_ITER": 3,
        "MODEL.SOLO_TRACK.EMB.SCOPE": "gather",
    }
    done = train("two", changes, "--num-gpus", "2", "MODEL.DEVICE", "cpu")
    assert done.code == 0, done.err[-3000:]
    final = tmp_path / "two" / "model_final.pth"
    assert len(tiny.difference(model.state_dict(), load(final)["model"])) > 20
    done = train("one", changes | {"MODEL.WEIGHTS": str(final)}, "--eval-only")
    assert done.code == 0, done.err
    results = [json.loads((tmp_path / name / "inference/tiny_test/results.json").read_text()) for name in ("two", "one")]
    assert results[0] == results[1]
    assert {track["video_id"] for track in results[0]} == {1, 2}


def test_a_fault_in_several_processes_is_a_sentence(train: Callable[..., Finished]) -> None:
    # forked, as fresh processes take seconds to import PyTorch
    fork = "import functools, torch.multiprocessing as m; m.start_processes = functools.partial(m.start_processes, start_method='fork')"
    done = train("a", {"SOLVER.IMS_PER_BATCH": 3}, "--num-gpus", "2", "MODEL.DEVICE", "cpu", setup=fork)
    assert done.code == 2 and "Traceback" not in done.err
    assert "error: SOLVER.IMS_PER_BATCH (3) must be a multiple of the number of processes (2)." in done.err


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
