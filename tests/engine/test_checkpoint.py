"""A checkpoint is whole or not there, loads nothing but numbers, and says what is wrong with it."""

from __future__ import annotations

import os
import pickle
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from solotrack.engine.checkpoint import AtomicCheckpointer, CheckpointError
from tests.toolserver import tool_server


class State:
    """Something besides the model that a checkpoint carries."""

    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"]


def linear(value: float) -> nn.Linear:
    model = nn.Linear(64, 64)
    nn.init.constant_(model.weight, value)
    nn.init.constant_(model.bias, -value)
    return model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the checkpoint ``good`` of weights 1."""
    AtomicCheckpointer(linear(1), str(tmp_path), state=State(5)).save("good", iteration=3)
    return tmp_path


def reload(folder: Path) -> tuple[float, int]:
    """What a resumed run starts from: weight, state."""
    model, state = linear(0), State(0)
    AtomicCheckpointer(model, str(folder), state=state).resume_or_load("", resume=True)
    assert (model.weight == model.weight[0, 0]).all() and (model.bias == -model.weight[0, 0]).all()
    return model.weight[0, 0].item(), state.value


def test_save_and_resume(saved: Path) -> None:
    assert reload(saved) == (1, 5)
    checkpointer = AtomicCheckpointer(linear(2), str(saved), state=State(6))
    checkpointer.save("better", iteration=4)
    assert reload(saved) == (2, 6)
    assert checkpointer.load(str(saved / "good.pth"))["iteration"] == 3
    assert sorted(os.listdir(saved)) == ["better.pth", "good.pth", "last_checkpoint"]


def test_an_untagged_file_is_not_what_a_run_continues_from(saved: Path) -> None:
    AtomicCheckpointer(linear(2), str(saved), state=State(6)).save("best", tag=False)
    assert reload(saved) == (1, 5)
    assert (saved / "best.pth").exists()


def test_a_last_checkpoint_that_was_removed_is_none(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpointer = AtomicCheckpointer(linear(0.0), str(saved))
    path = Path(checkpointer.get_checkpoint_file())
    assert checkpointer.has_checkpoint()
    path.unlink()
    assert not checkpointer.has_checkpoint() and f"{path} was the last checkpoint and is gone" in caplog.text


def test_nothing_is_saved_where_nothing_should_be(tmp_path: Path) -> None:
    AtomicCheckpointer(linear(1), str(tmp_path), save_to_disk=False).save("a")
    AtomicCheckpointer(linear(1)).save("a")
    assert not os.listdir(tmp_path)


# ---- processes that end in the middle of a save

# Weights of 4 MB over the checkpoint "good"; the preparation says how the process is to end.
SAVE = """
import os, resource, signal, sys
import torch
from solotrack.engine.checkpoint import AtomicCheckpointer, CheckpointError
{preparation}
model = torch.nn.Linear(1000, 1000)
try:
    AtomicCheckpointer(model, sys.argv[1]).save("next")
except CheckpointError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    print(error)
"""
PREPARATIONS = {
    # The kernel ends the process (SIGXFSZ, as abrupt as SIGKILL) at the very byte that is one too many.
    "first byte": "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))",
    "half": "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))",
    "all but the end": "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))",
    "before the rename": "os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)",
    "before the tag": "replace = os.replace; os.replace = lambda *names: (replace(*names), os.kill(os.getpid(), signal.SIGKILL))",
}


def save_in_a_process(folder: Path, preparation: str):
    script = folder.parent / "save.py"
    script.write_text(SAVE.format(preparation=preparation))
    return tool_server().run(script, folder)


@pytest.mark.parametrize("moment", PREPARATIONS)
def test_a_killed_save_leaves_the_previous_checkpoint_in_force(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "run"
    AtomicCheckpointer(linear(1), str(folder), state=State(5)).save("good")
    done = save_in_a_process(folder, PREPARATIONS[moment])
    assert -done.code in (signal.SIGKILL, signal.SIGXFSZ), done.err
    assert (folder / "last_checkpoint").read_text() == "good.pth"
    assert reload(folder) == (1, 5)
    checkpoints = {name for name in os.listdir(folder) if name.endswith(".pth")}
    assert checkpoints == {"good.pth"} | ({"next.pth"} if moment == "before the tag" else set()), "no half file has a checkpoint's name"
    for name in checkpoints:
        assert "model" in torch.load(folder / name, weights_only=True)
    assert save_in_a_process(folder, "").code == 0, "the next save is not in the way of what the kill left behind"
    assert (folder / "last_checkpoint").read_text() == "next.pth"


@pytest.mark.parametrize("room", [0, 2_000_000, 4_000_000])
def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path: Path, room: int) -> None:
    """Python ignores SIGXFSZ, so a write beyond the limit fails as on a full disk."""
    folder = tmp_path / "run"
    AtomicCheckpointer(linear(1), str(folder), state=State(5)).save("good")
    done = save_in_a_process(folder, f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, -1))")
    assert done.code == 0 and not done.err, done.err
    assert f"Could not write {folder / 'next.pth'}" in done.out and "Free some disk space" in done.out
    assert sorted(os.listdir(folder)) == ["good.pth", "last_checkpoint"], "the part that was written is gone and its room free"
    assert reload(folder) == (1, 5)


def test_a_full_disk_at_the_tag(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    AtomicCheckpointer(linear(1), str(folder), state=State(5)).save("good")
    shrink = "AtomicCheckpointer.tag_last_checkpoint = lambda *a, tag=AtomicCheckpointer.tag_last_checkpoint: ({}, tag(*a))"
    done = save_in_a_process(folder, shrink.format("resource.setrlimit(resource.RLIMIT_FSIZE, (0, -1))"))
    assert done.code == 0 and "Could not write" in done.out, done.err
    assert reload(folder) == (1, 5)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"Could not write .*file/run/a\.pth"):
        AtomicCheckpointer(linear(1), str(tmp_path / "file" / "run")).save("a")


# ---- files that cannot be loaded


def damaged(data: bytes, how: str) -> bytes:
    inside = data.index(np.full(16, 1, np.float32).tobytes())  # somewhere in the weights
    return {
        "empty": b"",
        "cut short": data[: len(data) // 2],
        "end missing": data[:-10],
        "a flipped bit in the weights": data[: inside + 3] + bytes([data[inside + 3] ^ 1]) + data[inside + 4 :],
        "zeros": bytes(len(data)),
        "a web page": b"<html>Not found</html>\n" * 50,
        "noise": np.random.default_rng(0).bytes(5000),
    }[how]


@pytest.mark.parametrize("how", ["empty", "cut short", "end missing", "a flipped bit in the weights", "zeros", "a web page", "noise"])
def test_damaged_files_are_named(saved: Path, how: str) -> None:
    path = saved / "good.pth"
    path.write_bytes(damaged(path.read_bytes(), how))
    model = linear(7)
    for load in (AtomicCheckpointer(model).load, AtomicCheckpointer(model).load_for_inference):
        with pytest.raises(CheckpointError) as caught:
            load(str(path))
        text = str(caught.value)
        assert text.startswith(f"{path} is not a readable checkpoint (") and "\n" not in text
        assert "weights_only" not in text, "PyTorch's advice to load it unsafely is not passed on"
    assert (model.weight == 7).all()
    with pytest.raises(CheckpointError, match=r"good\.pth is not a readable checkpoint"):
        reload(saved)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
def test_whatever_bytes_spell_is_named(tmp_path: Path, name: str) -> None:
    """Text and noise read as a pickle's instructions: "broken" pops from an empty stack, \x95 asks for more than there can be."""
    rng = random.Random(0)
    for content in [b"broken", b"weights", b"\x95" + b"\xff" * 8, *(rng.randbytes(rng.randrange(1, 40)) for _ in range(150))]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
            AtomicCheckpointer(linear(7)).load(str(tmp_path / name))


def test_a_buffer_that_fits_is_no_weight(tmp_path: Path) -> None:
    model = linear(1)
    model.register_buffer("mean", torch.zeros(3))
    torch.save({"model": {"mean": torch.ones(3), "other.weight": torch.ones(64, 64)}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"No weight of .*a\.pth fits a parameter of the model"):
        AtomicCheckpointer(model).load(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, "text", None])
def test_files_of_another_kind(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    for name in ("a.pth", "a.pkl"):
        with pytest.raises(CheckpointError, match=rf"{name} is not a readable checkpoint"):
            AtomicCheckpointer(linear(0)).load(str(tmp_path / name))


def test_a_failed_load_is_no_obstacle_to_the_next(saved: Path) -> None:
    model = linear(0)
    checkpointer = AtomicCheckpointer(model)
    (saved / "bad.pth").write_bytes(b"")
    with pytest.raises(CheckpointError):
        checkpointer.load(str(saved / "bad.pth"))
    checkpointer.load(str(saved / "good.pth"))
    assert (model.weight == 1).all()


def test_missing_files(tmp_path: Path) -> None:
    checkpointer = AtomicCheckpointer(linear(0))
    for path in (tmp_path / "none.pth", tmp_path):
        for load in (checkpointer.load, checkpointer.load_for_inference):
            with pytest.raises(CheckpointError, match=rf"There is no checkpoint {path}\. Check MODEL\.WEIGHTS"):
                load(str(path))
    with pytest.raises(CheckpointError, match=r"No weights: set MODEL\.WEIGHTS"):
        checkpointer.load_for_inference("")
    assert checkpointer.load("") == {}


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": {"weight": torch.zeros(3, 5)}}, path)
    with pytest.raises(CheckpointError) as caught:
        AtomicCheckpointer(linear(0)).load_for_inference(str(path))
    assert str(caught.value).startswith(
        f"{path} does not fit the config: 2 parameters are missing or of another shape, "
        "e.g. weight (shape (3, 5), the config wants (64, 64)), bias. Use the config"
    )


def test_a_missing_null_logit_is_no_fault(tmp_path: Path) -> None:
    """Weights converted from elsewhere are not calibrated."""
    model = nn.Module()
    model.layer = linear(0)
    model.register_buffer("null_logit", torch.tensor(float("nan")))
    torch.save({"model": {f"layer.{key}": value for key, value in linear(3).state_dict().items()}}, tmp_path / "a.pth")
    AtomicCheckpointer(model).load_for_inference(str(tmp_path / "a.pth"))
    assert (model.layer.weight == 3).all() and model.null_logit.isnan()


# ---- pickles


def arrays() -> dict[str, np.ndarray]:
    return {"weight": np.full((64, 64), 4, np.float32), "bias": np.full(64, -4, np.float32)}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", ["bare", "detectron2"])
def test_model_zoo_pickles_of_arrays_load(tmp_path: Path, protocol: int, kind: str) -> None:
    content = arrays() if kind == "bare" else {"model": arrays(), "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    model = linear(0)
    AtomicCheckpointer(model).load_for_inference(str(tmp_path / "a.pkl"))
    assert (model.weight == 4).all() and (model.bias == -4).all()


class Malicious:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("name", ["a.pkl", "a.pth", "a.pyth", "zip.pth"])
def test_pickles_that_run_code_are_refused(tmp_path: Path, name: str) -> None:
    path, trace = tmp_path / name, tmp_path / "trace"
    content = {"model": arrays() | {"weight": Malicious(trace)}, "model_state": {}}
    if name == "zip.pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=rf"{name} is not a readable checkpoint \((it wants to run|it is damaged, or holds Python)"):
        AtomicCheckpointer(linear(0)).load(str(path))
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists(), "the pickle is dangerous indeed"
