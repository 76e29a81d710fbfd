"""The Python API: a video's tracks, the same frame by frame, and the files made of them."""

from __future__ import annotations

import csv
import json
import logging
import tracemalloc

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from solotrack.config import ConfigError, load_config
from solotrack.data.catalog import register_custom
from solotrack.data.frames import Frame, FrameError
from solotrack.engine.checkpoint import AtomicCheckpointer, CheckpointError
from solotrack.engine.predictor import TrackCollector, VideoPredictor, _class_names
from solotrack.tracking import TrackRecorder
from solotrack.visualization.video_writer import VideoWriter

NAMES = ["dog", "cat", "bird"]


def blob_config(*overrides: str):
    keys = ["MODEL.DEVICE", "cpu", "MODEL.SOLO.NUM_CLASSES", "3", "INPUT.MIN_SIZE_TEST", "0", "TEST.FRAMES_PER_BATCH", "4"]
    return load_config("", [*keys, "TRACKER_HEADS.NULL_LOGIT", "4.0", *overrides])


@pytest.fixture
def predictor(blobs) -> VideoPredictor:
    return VideoPredictor(blob_config(), blobs.Detector(), NAMES)


def test_track(predictor, blobs):
    images = list(blobs.frames(10))
    tracks = predictor.track(images)
    assert (tracks.length, tracks.height, tracks.width, tracks.fps) == (10, 60, 80, None)
    assert [track.id for track in tracks.tracks] == list(range(5))
    for track in tracks.tracks:
        present = [t for t in range(10) if track.segmentations[t] is not None]
        assert track.category == NAMES[track.category_id - 1]
        assert track.score == pytest.approx(np.mean([track.frame_scores[t] for t in present]))
        color = images[present[0]][track.masks(present[0])][0]
        for t in range(10):
            truth = (images[t] == color).all(axis=2)
            assert [x is None for x in (track.segmentations[t], track.frame_scores[t], track.boxes[t], track.masks(t))] == [
                not truth.any()
            ] * 4
            if truth.any():
                np.testing.assert_array_equal(track.masks(t), truth)
                ys, xs = truth.nonzero()
                assert track.boxes[t] == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        with pytest.raises(IndexError):
            track.masks(10)


def test_kinds_of_input_give_the_same_tracks(predictor, blobs, tmp_path):
    images = list(blobs.frames(6))
    expected = predictor.track(images).results()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"f{i}.png")
    files = sorted(tmp_path.glob("*.png"))
    for video in (tmp_path, str(tmp_path / "f*.png"), files, {"file_names": files}, np.stack(images), iter(images)):
        assert predictor.track(video).results() == expected
    bgr = VideoPredictor(blob_config("INPUT.FORMAT", "BGR"), blobs.Detector(), NAMES)
    seen = []
    bgr.model.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    bgr.track(tmp_path / "f0.png")
    bgr.update(images[0])
    for x in seen:
        np.testing.assert_array_equal(x["image"].numpy(), images[0][..., ::-1].transpose(2, 0, 1))


def test_video_file(predictor, blobs, tmp_path):
    with VideoWriter(tmp_path / "a.mp4", fps=5, quality=1) as writer:
        for image in blobs.frames(7):
            writer.write(image)
    tracks = predictor.track(tmp_path / "a.mp4")
    assert (tracks.length, tracks.fps, tracks.height, tracks.width) == (7, 5.0, 60, 80)
    assert len(tracks.tracks) == 5


def test_one_frame_and_no_instance(predictor, blobs):
    assert len(predictor.track([next(blobs.frames(2, seed=1))]).tracks) == 4
    empty = predictor.track([np.full((20, 30, 3), 90, np.uint8)] * 2)
    assert (empty.length, empty.tracks, empty.results()) == (2, [], [])


def test_frame_by_frame_is_the_same_as_the_whole_video(predictor, blobs):
    """T17: track, stream and update agree in every frame, and do not disturb one another."""
    images = list(blobs.frames(9))
    whole = predictor.track(images)
    for t, (image, (frame, streamed)) in enumerate(zip(images, predictor.stream(images), strict=True)):
        updated = predictor.update(image)
        assert frame.index == t
        for instances in (streamed, updated):
            assert instances.ID.tolist() == streamed.ID.tolist()
            torch.testing.assert_close(instances.scores, streamed.scores, rtol=0, atol=0)
            for identity, mask, score in zip(instances.ID.tolist(), instances.pred_masks, instances.scores.tolist(), strict=True):
                track = whole.tracks[identity]
                np.testing.assert_array_equal(mask.numpy(), track.masks(t))
                assert score == track.frame_scores[t]
        assert len(updated) == sum(track.segmentations[t] is not None for track in whole.tracks)
    assert predictor.update(images[0]).ID.max() < 5, "the same objects keep their identities"
    predictor.reset()
    assert predictor.update(images[0]).ID.tolist() == list(range(len(predictor.update(images[0]))))


def test_update_refuses_what_is_no_frame(predictor):
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), torch.zeros(4, 4, 3, dtype=torch.uint8)):
        with pytest.raises(FrameError, match=r"\(H, W, 3\) uint8"):
            predictor.update(bad)


def test_files(predictor, blobs, tmp_path):
    images = list(blobs.frames(6))
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"f{i}.png")
    tracks = predictor.track(tmp_path)
    tracks.fps = 4.0
    tracks.save_results(tmp_path / "results.json", video_id=3)
    tracks.save_video_json(tmp_path / "video.json", video_id=3)
    tracks.save_csv(tmp_path / "tracks.csv")
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".json", ".csv"}, "no temporary files are left"

    results = json.loads((tmp_path / "results.json").read_text())
    assert results == tracks.results(3)
    assert all(set(r) == {"video_id", "category_id", "score", "segmentations"} and r["video_id"] == 3 for r in results)
    video = json.loads((tmp_path / "video.json").read_text())
    assert video["videos"] == [
        {"id": 3, "height": 60, "width": 80, "length": 6, "file_names": [str(tmp_path / f"f{i}.png") for i in range(6)]}
    ]
    assert [(c["id"], c["name"]) for c in video["categories"]] == [(1, "dog"), (2, "cat"), (3, "bird")]

    with open(tmp_path / "tracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["frame", "time_s", "track_id", "category", "score", "x1", "y1", "x2", "y2", "area"]
    keys = [(int(row["frame"]), int(row["track_id"])) for row in rows]
    assert keys == sorted((t, track.id) for track in tracks.tracks for t in range(6) if track.segmentations[t])
    for row, (t, identity) in zip(rows, keys, strict=True):
        track = tracks.tracks[identity]
        mask = track.masks(t)
        assert float(row["time_s"]) == t / 4
        assert row["category"] == track.category
        assert float(row["score"]) == pytest.approx(track.frame_scores[t], abs=1e-4)
        assert tuple(float(row[k]) for k in ("x1", "y1", "x2", "y2")) == track.boxes[t]
        assert int(row["area"]) == mask.sum()
    tracks.fps = None
    tracks.save_csv(tmp_path / "tracks.csv")
    with open(tmp_path / "tracks.csv", newline="") as file:
        assert {row["time_s"] for row in csv.DictReader(file)} == {""}


def test_memory_grows_with_the_masks_alone():
    """A video of twice the length has twice the tracks here: tracks times frames would be four times as much."""
    rle = {"size": [4, 6], "counts": "`011"}

    def peak(length):
        collector = TrackCollector(TrackRecorder(), ["thing"])
        for index in range(length):
            collector.add_frame(Frame(index, np.zeros((4, 6, 3), np.uint8), "a.png"))
            collector.add(index, torch.tensor([index // 5]), [rle], torch.tensor([0.5]), torch.tensor([0]))
        tracemalloc.start()
        tracks = collector.finish()
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(tracks.tracks) == length / 5 and sum(x is not None for x in tracks.tracks[1].segmentations) == 5
        return size

    assert peak(2000) < 2.5 * peak(1000)


def test_progress_bar(predictor, blobs, capsys):
    predictor.track(list(blobs.frames(3)))
    assert not capsys.readouterr().err
    predictor.track(list(blobs.frames(3)), progress=True)
    assert "3/3" in capsys.readouterr().err


def test_class_names(tmp_path, blobs, caplog):
    (tmp_path / "a.json").write_text(
        json.dumps({"images": [], "categories": [{"id": 4, "name": "dog"}, {"id": 9, "name": "cat"}], "annotations": []})
    )
    cfg = blob_config("MODEL.SOLO.NUM_CLASSES", "2")
    cfg.DATASETS.CUSTOM.IMAGES = [[f"{tmp_path.name}_a", str(tmp_path / "a.json"), str(tmp_path)]]
    cfg.DATASETS.TRAIN = (f"{tmp_path.name}_a",)
    register_custom(cfg)
    assert _class_names(cfg) == ["dog", "cat"]
    assert not caplog.records
    cfg.DATASETS.TRAIN = ("no_such_set",)
    with caplog.at_level(logging.WARNING):
        assert _class_names(cfg) == ["class 1", "class 2"]
    assert "DATASETS.CLASS_NAMES" in caplog.text
    cfg.DATASETS.CLASS_NAMES = ["hen", "fox"]
    assert _class_names(cfg) == ["hen", "fox"]


def solo_config(*overrides: str):
    tiny = {
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
        "MODEL.SOLO.SCORE_THRESH": "0.0",
        "MODEL.SOLO.UPDATE_THRESH": "0.0",
        "MODEL.SOLO_TRACK.EMB.CHANNELS": "16",
        "MODEL.SOLO_TRACK.EMB.NUM_CONVS": "1",
        "MODEL.SOLO_TRACK.EMB.DIM": "8",
        "TRACKER_HEADS.SCORE_THRESH": "0.0",
        "INPUT.MIN_SIZE_TEST": "64",
        "TEST.FRAMES_PER_BATCH": "3",
    }
    return load_config("", [word for pair in tiny.items() for word in pair] + list(overrides))


def test_checkpoint_to_tracks(tmp_path, blobs):
    """From a checkpoint of the real network: weights and null logit arrive, and batches do not change the tracks."""
    torch.manual_seed(0)
    model = build_model(solo_config())
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # scores and masks all over the place
    model.embedding_head.null_logit.fill_(0.25)
    AtomicCheckpointer(model, str(tmp_path)).save("model_final")
    cfg = solo_config("MODEL.WEIGHTS", str(tmp_path / "model_final.pth"))
    predictor = VideoPredictor(cfg)
    assert not predictor.model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(predictor.model.state_dict()[name], value, rtol=0, atol=0)
    images = list(blobs.frames(5))
    tracks = predictor.track(images)
    assert predictor.video_tracker.tracker.null_logit == 0.25
    assert tracks.tracks and all(len(track.segmentations) == 5 for track in tracks.tracks)
    for t, image in enumerate(images):
        instances = predictor.update(image)
        present = sorted(track.id for track in tracks.tracks if track.segmentations[t])
        found = (instances.ID >= 0) & instances.pred_masks.flatten(1).any(dim=1)
        assert sorted(instances.ID[found].tolist()) == present
        for identity, mask, score in zip(instances.ID[found].tolist(), instances.pred_masks[found], instances.scores[found], strict=True):
            (track,) = (x for x in tracks.tracks if x.id == identity)
            assert track.frame_scores[t] == pytest.approx(score.item(), abs=1e-5)
            assert (mask.numpy() != track.masks(t)).mean() < 0.01


def test_masks_of_frames_of_another_size(predictor, blobs, tmp_path, caplog):
    images = list(blobs.frames(3))
    frames = [images[0], np.repeat(np.repeat(images[1], 2, 0), 2, 1), images[2]]
    tracks = predictor.track(frames)
    with caplog.at_level("WARNING"):
        results = tracks.results()
    assert "were resized to the first frame's 80 x 60 pixels" in caplog.text
    for track, result in zip(tracks.tracks, results, strict=True):
        for own, saved in zip(track.segmentations, result["segmentations"], strict=True):
            assert (own is None) == (saved is None)
            if saved is not None:
                factor = own["size"][0] // 60
                assert saved["size"] == [60, 80]
                np.testing.assert_array_equal(mask_util.decode(saved), mask_util.decode(own)[factor // 2 :: factor, factor // 2 :: factor])
    assert any(track.segmentations[1] and track.segmentations[1]["size"] == [120, 160] for track in tracks.tracks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_devices_that_are_not_there(blobs):
    for device in ("gpu", "cuda"):
        with pytest.raises(ConfigError, match=rf"MODEL\.DEVICE is '?{device}"):
            VideoPredictor(blob_config("MODEL.DEVICE", device), blobs.Detector(), NAMES)


def test_weights_that_cannot_work(tmp_path):
    with pytest.raises(CheckpointError, match="No weights"):
        VideoPredictor(solo_config())
    with pytest.raises(CheckpointError, match=r"gone\.pth"):
        VideoPredictor(solo_config("MODEL.WEIGHTS", str(tmp_path / "gone.pth")))
