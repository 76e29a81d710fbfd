"""tools/track_video.py from the command line's arguments to the files."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from solotrack.config import load_config
from solotrack.data.frames import open_frames
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.predictor import VideoPredictor
from solotrack.engine.streaming import VideoTracker
from solotrack.evaluation.ytvis_format import load_json, read_ground_truth, read_predictions
from solotrack.visualization.video_writer import VideoWriter

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_small_resnet_fpn_backbone",
    "MODEL.SMALL_RESNET.STEM_CHANNELS": "8",
    "MODEL.SMALL_RESNET.CHANNELS": "[8, 12, 16, 24]",
    "MODEL.FPN.IN_FEATURES": "['res2', 'res3', 'res4', 'res5']",
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.SOLO.NUM_CLASSES": "3",
    "MODEL.SOLO.NUM_GRIDS": "[8, 6, 4, 3, 2]",
    "MODEL.SOLO.CHANNELS": "16",
    "MODEL.SOLO.NUM_GROUPS": "4",
    "MODEL.SOLO.NUM_CONVS": "1",
    "MODEL.SOLO.UPDATE_THRESH": "0.0",
    "MODEL.SOLO_TRACK.EMB.CHANNELS": "16",
    "MODEL.SOLO_TRACK.EMB.NUM_CONVS": "1",
    "MODEL.SOLO_TRACK.EMB.DIM": "8",
    "TRACKER_HEADS.SCORE_THRESH": "0.0",
    "INPUT.MIN_SIZE_TEST": "64",
    "TEST.FRAMES_PER_BATCH": "3",
    "DATASETS.TRAIN": "()",
}


@pytest.fixture(scope="module")
def tool(repo_root):
    spec = importlib.util.spec_from_file_location("track_video", repo_root / "tools" / "track_video.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> list[str]:
    """Options that name a config and a checkpoint. The weights are random and the scores spread out, so every frame has detections."""
    folder = tmp_path_factory.mktemp("model")
    cfg = load_config("", [word for pair in TINY.items() for word in pair])
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    model = build_model(cfg)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    AtomicCheckpointer(model, str(folder)).save("model")
    return ["--config-file", str(folder / "config.yaml"), "--weights", str(folder / "model.pth"), "--device", "cpu"]


@pytest.fixture
def frames(tmp_path) -> Path:
    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(12):  # f10 comes after f2
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"f{i}.png")
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def read_csv(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_folder(tool, trained, frames, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert tool.main([*trained, "--input", str(frames), "--output", str(out), "--fps", "6"]) == 0
    assert names_in(out) == ["overlay.mp4", "results.json", "tracks.csv", "video.json"]
    assert "in 12 frames" in capsys.readouterr().out

    expected = VideoPredictor(load_config(trained[1], ["MODEL.WEIGHTS", trained[3]])).track(frames)
    results = json.loads((out / "results.json").read_text())
    assert results == expected.results() and len(results) > 0
    video = json.loads((out / "video.json").read_text())["videos"][0]
    assert video["length"] == 12 and (video["height"], video["width"]) == (48, 64)
    assert [Path(name).name for name in video["file_names"]] == [f"f{i}.png" for i in range(12)]

    rows = read_csv(out / "tracks.csv")
    assert len(rows) == sum(rle is not None for r in results for rle in r["segmentations"])
    for row in rows:
        rle = results[[track.id for track in expected.tracks].index(int(row["track_id"]))]["segmentations"][int(row["frame"])]
        assert int(row["area"]) == mask_util.area(rle)
        assert float(row["time_s"]) == pytest.approx(int(row["frame"]) / 6, abs=1e-3)

    overlay = open_frames(out / "overlay.mp4")
    assert overlay.fps == 6
    shown = list(overlay)
    assert len(shown) == 12 and shown[0].image.shape == (8 * 48, 8 * 64, 3), "small frames are enlarged"


def test_video_file_thinned_out(tool, trained, frames, tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", fps=12) as writer:
        for frame in open_frames(frames):
            writer.write(frame.image)
    out = tmp_path / "out"
    options = ["--input", str(tmp_path / "clip.mp4"), "--output", str(out), "--every", "3", "--max-frames", "2"]
    assert tool.main([*trained, *options]) == 0
    overlay = open_frames(out / "overlay.mp4")
    assert overlay.fps == 4 and len(list(overlay)) == 2
    assert {(row["frame"], row["time_s"]) for row in read_csv(out / "tracks.csv")} == {("0", "0.000"), ("1", "0.250")}
    video = json.loads((out / "video.json").read_text())["videos"][0]
    assert [name.rpartition("#")[2] for name in video["file_names"]] == ["0", "3"]


@pytest.mark.parametrize("tracker", ["EmbeddingTracker", "DistanceTracker", "IoUTracker", "SeqTracker"])
def test_frames_of_several_sizes_give_readable_files(tool, trained, frames, tmp_path, monkeypatch, caplog, tracker):
    for number, (height, width) in {1: (60, 48), 4: (24, 32)}.items():
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(frames / f"f{number}.png")
    monkeypatch.chdir(tmp_path)
    options = ["--input", frames.name, "--output", "out", "--max-frames", "6", "--tracker", tracker]
    assert tool.main([*trained, *options]) == 0
    assert "masks were resized to the first frame's 64 x 48 pixels" in caplog.text
    results, video = (tmp_path / "out" / f"{name}.json" for name in ("results", "video"))
    truth = read_ground_truth(load_json(video))
    tracks, warning = read_predictions(load_json(results), truth)
    assert warning is None and all(rle["size"] == [48, 64] for track in tracks for rle in track.rles if rle)
    assert any(track.rles[4] for track in tracks), "a frame of another size has masks too"
    assert load_json(video)["videos"][0]["file_names"] == [str(frames / f"f{i}.png") for i in range(6)]
    spec = importlib.util.spec_from_file_location("draw_results", ROOT / "tools" / "draw_results.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    monkeypatch.chdir("/")
    drawing = ["--annotations", str(video), "--predictions", str(results), "--score-thresh", "0"]
    assert draw.main([*drawing, "--sheet", str(tmp_path / "s.png"), "--mp4", str(tmp_path / "s.mp4")]) == 0
    assert (tmp_path / "s.png").exists() and len(list(open_frames(tmp_path / "s.mp4"))) == 6


def test_options_reach_the_config(tool, trained, frames, tmp_path):
    options = ["--input", str(frames / "f0.png"), "--output", str(tmp_path / "out")]
    args = tool.parser().parse_args([*trained, *options, "--tracker", "IoUTracker", "--score-thresh", "0.3", "TEST.FRAMES_PER_BATCH", "5"])
    cfg = tool.config_from(args)
    assert (cfg.TRACKER_HEADS.TRACKER_NAME, cfg.TRACKER_HEADS.SCORE_THRESH, cfg.TEST.FRAMES_PER_BATCH) == ("IoUTracker", 0.3, 5)
    assert (trained[3], "cpu") == (cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE)
    args = tool.parser().parse_args([*trained, *options, "MODEL.WEIGHTS", "other.pth", "MODEL.DEVICE", "cuda"])
    cfg = tool.config_from(args)
    assert (trained[3], "cpu") == (cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE), "options win over KEY VALUE"
    assert tool.main([*trained, *options, "--no-overlay", "--score-thresh", "1"]) == 0
    assert names_in(tmp_path / "out") == ["results.json", "tracks.csv", "video.json"]
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert read_csv(tmp_path / "out" / "tracks.csv") == []


def test_ctrl_c_writes_what_is_there(tool, trained, frames, tmp_path, monkeypatch, capsys):
    draw, drawn = tool.draw_tracks, []

    def draw_and_interrupt(*args, **kwargs):
        drawn.append(1)
        if len(drawn) == 5:
            signal.raise_signal(signal.SIGINT)
        return draw(*args, **kwargs)

    monkeypatch.setattr(tool, "draw_tracks", draw_and_interrupt)
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out"
    assert tool.main([*trained, "--input", str(frames), "--output", str(out)]) == 0
    assert "Stopped after 5 frames" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert len(list(open_frames(out / "overlay.mp4"))) == 5
    assert {len(r["segmentations"]) for r in json.loads((out / "results.json").read_text())} == {5}
    assert json.loads((out / "video.json").read_text())["videos"][0]["length"] == 5

    def draw_and_insist(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(tool, "draw_tracks", draw_and_insist)
    assert tool.main([*trained, "--input", str(frames), "--output", str(tmp_path / "none")]) == 130
    assert names_in(tmp_path / "none") == []


@pytest.mark.parametrize("calls", [1, 2])
def test_ctrl_c_in_an_offline_trackers_first_reading(tool, trained, frames, tmp_path, monkeypatch, capsys, calls):
    """What was read until then is linked and written, all of it."""
    run, done = VideoTracker._run, []

    def run_and_interrupt(self, inputs):
        done.append(len(inputs))
        if len(done) == calls:
            signal.raise_signal(signal.SIGINT)
        return run(self, inputs)

    monkeypatch.setattr(VideoTracker, "_run", run_and_interrupt)
    out = tmp_path / "out"
    assert tool.main([*trained, "--input", str(frames), "--output", str(out), "--tracker", "SeqTracker"]) == 0
    assert len(done) == calls, "the network does not see the rest"
    read = 3 * (calls - 1) + 1  # it is asked after every frame
    assert f"Stopped after {read} frames" in capsys.readouterr().out
    assert len(list(open_frames(out / "overlay.mp4"))) == read
    assert {len(r["segmentations"]) for r in json.loads((out / "results.json").read_text())} == {read}


def break_frame(frames: Path, number: int) -> None:
    data = (frames / f"f{number}.png").read_bytes()
    (frames / f"f{number}.png").write_bytes(data[: len(data) // 2])


def test_corrupt_frame_ends_the_video_there(tool, trained, frames, tmp_path, capsys):
    """What was tracked before it is written, and the exit status says that it is not the whole video."""
    break_frame(frames, 7)
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert tool.main([*trained, "--input", str(frames), "--output", str(out), "TEST.FRAMES_PER_BATCH", "1"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "f7.png cannot be read" in message and f"The 7 frames before it are tracked in {out}" in message
    assert tool.main([*trained, "--input", str(frames), "--output", str(whole), "--max-frames", "7"]) == 0
    assert names_in(out) == names_in(whole) and len(list(open_frames(out / "overlay.mp4"))) == 7
    assert (out / "tracks.csv").read_text() == (whole / "tracks.csv").read_text()


def test_corrupt_first_frame_keeps_the_old_files(tool, trained, frames, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("old")
    break_frame(frames, 0)
    assert tool.main([*trained, "--input", str(frames), "--output", str(out)]) == 2
    assert "f0.png cannot be read" in capsys.readouterr().err.splitlines()[-1]
    assert names_in(out) == ["results.json"] and (out / "results.json").read_text() == "old"


@pytest.mark.parametrize("name", ["results.json", "overlay.mp4"])
def test_what_cannot_be_written_shows_before_the_model_is_built(tool, trained, frames, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(tool, "VideoPredictor", lambda cfg: pytest.fail("too late"))
    (tmp_path / "out" / name).mkdir(parents=True)
    assert tool.main([*trained, "--input", str(frames), "--output", str(tmp_path / "out")]) == 2
    assert f"{name} is a folder" in capsys.readouterr().err
    assert names_in(tmp_path / "out") == [name]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"--input": "no/such/clip.mp4"}, "no file, folder or pattern no/such/clip.mp4"),
        ({"--input": "camera:99"}, "camera 99"),
        ({"--weights": "no/such/model.pth"}, "no/such/model.pth"),
        ({"--weights": ""}, "No weights"),
        ({"--config-file": "no/such/config.yaml"}, "no/such/config.yaml"),
        ({"--tracker": "BestTracker"}, "BestTracker"),
        ({"--score-thresh": "2"}, "TRACKER_HEADS.SCORE_THRESH"),
        ({"--every": "0"}, "--every"),
        ({"--fps": "0"}, "--fps"),
        ({"TRACKER_HEADS.SCORE_TRESH": "0.1"}, "Did you mean TRACKER_HEADS.SCORE_THRESH"),
    ],
)
def test_errors_are_one_sentence(tool, trained, frames, tmp_path, capsys, change, text):
    options = dict(zip(trained[::2], trained[1::2], strict=True)) | {"--input": str(frames), "--output": str(tmp_path / "out")} | change
    assert tool.main([word for pair in options.items() for word in pair]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and text in line
    assert not (tmp_path / "out").exists() or names_in(tmp_path / "out") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(tool, trained, frames, tmp_path, capsys):
    assert tool.main([*trained[:4], "--device", "cuda", "--input", str(frames), "--output", str(tmp_path)]) == 2
    assert "set MODEL.DEVICE to cpu" in capsys.readouterr().err


def test_command_line(repo_root, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(repo_root), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(repo_root / "tools" / "track_video.py")]
    run = subprocess.run([*command, "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    for word in ("overlay.mp4", "tracks.csv", "camera:0", "--score-thresh", "KEY VALUE"):
        assert word in run.stdout
