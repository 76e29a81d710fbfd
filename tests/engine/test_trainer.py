"""Training as users start it: tools/train_net.py, killed, resumed, poisoned, frozen, in mixed precision and in several processes."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from solotrack.data.loader import build_train_loader
from solotrack.engine.checkpoint import AtomicCheckpointer
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
