"""tools/benchmark.py: every benchmark runs and prints what it is for; how fast something is, no test can say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from solotrack.engine.checkpoint import AtomicCheckpointer
from tests import tiny
from tests.toolserver import tool_server

SMALL = {
    "tracker": ["--detections", "2", "--frames", "2", "--size", "40", "60"],
    "targets": ["--size", "64", "64", "--batch", "1", "--instances", "2"],
    "mask-rows": ["--size", "64", "64", "--batch", "1", "--instances", "4"],
    "evaluator": ["--videos", "2", "--frames", "3", "--size", "20", "30"],
    "stream": ["--frames", "3", "--size", "64", "64"],
    "adaptation": ["--frames", "4", "--size", "64", "64"],
    "train-step": ["--random", "64", "64", "--instances", "2"],
    "video-step": ["--clips", "2"],
}
ROWS = {
    "tracker": {"IoU", "SOLO-Track"},
    "targets": {"2 instances an image"},
    "mask-rows": {"needed rows, forward", "all maps, forward + backward"},
    "evaluator": {"json.loads of both files", "read, check and score them"},
    "stream": {"end to end, a frame", "network", "association", "run-length codes"},
    "adaptation": {"tracking", "adapting", "adapting and tracking"},
    "train-step": {"whole step", "backbone, forward", "heads and losses, backward", "backbone, backward"},
    "video-step": {"video step", "same images, forward + backward", "cycle loss, forward + backward"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A config file, and weights that see something everywhere."""
    folder = tmp_path_factory.mktemp("benchmark")
    video = {"MODEL.SOLO_TRACK.VIDEO.ENABLED": True, "MODEL.SOLO_TRACK.VIDEO.NODE_SCORE": 0.0, "TTA.ITERS": 2}
    clips = {"DATASETS.TRAIN_CLIPS": ["tiny_unlabelled"], "INPUT.CLIPS.MIN_SIZE_TRAIN": [tiny.SIZE]}
    changes = tiny.detect_everything() | video | clips
    AtomicCheckpointer(tiny.model(tiny.config(changes), spread=0.3), str(folder)).save("start")
    return tiny.write_config(folder / "config.yaml", changes), str(folder / "start.pth")


@pytest.mark.parametrize("name", SMALL)
def test_every_benchmark(name: str, config: tuple[str, str], tmp_path: Path) -> None:
    path, weights = config
    words = [name, *SMALL[name], "--repeats", "1", "--json", str(tmp_path / "out.json"), "--config-file", path]
    if name in ("stream", "adaptation", "train-step", "video-step"):
        words += ["--weights", weights]
    done = tool_server().tool("benchmark", *words)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out.json").read_text())
    rows = {row[""]: row for row in report["rows"]}
    assert rows.keys() >= ROWS[name] and all(row["median ms"] > 0 for row in rows.values())
    assert all(row_name in done.out for row_name in rows) and report["machine"]["torch"] == torch.__version__
    notes = " ".join(report["notes"])
    if name == "stream":
        assert "the stages without" not in notes
    if name == "adaptation":
        assert "4 frames" in notes and "2 steps" in notes and rows["tracking"]["times tracking"] == 1
        assert rows["adapting"]["median ms"] < rows["adapting and tracking"]["median ms"]
    if name == "video-step":
        assert "2 clips of 2 frames" in notes and " 0.0 nodes" not in notes
        assert rows["cycle loss, forward + backward"]["% of the step"] < 100


def test_stream_of_other_models(config: tuple[str, str], tmp_path: Path) -> None:
    """With adaptation, of MaskTrack R-CNN, and of an offline tracker, which has no stages and says so at once."""
    path, weights = config

    def stream(*words: str) -> tuple[int, str, str]:
        done = tool_server().tool("benchmark", "stream", *SMALL["stream"], "--repeats", "1", *words)
        return done.code, done.out, done.err

    code, out, err = stream("--config-file", path, "--weights", weights, "TTA.ENABLED", "True")
    assert code == 0, err
    assert "the stages without" in out and "post-processing" in out
    code, out, err = stream("--config-file", tiny.write_config(tmp_path / "masktrack.yaml", tiny.masktrack()))
    assert code == 0, err
    assert "network" in out and "post-processing" not in out
    code, out, err = stream("--config-file", path, "--weights", weights, "TRACKER_HEADS.TRACKER_NAME", "SeqTracker")
    assert code == 2 and "SeqTracker links whole videos" in err
