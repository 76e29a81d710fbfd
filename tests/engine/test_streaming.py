"""Streaming inference: what comes out does not depend on how it is batched, read ahead or cut into calls, and nothing piles up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.structures import Boxes, Instances
from PIL import Image

from solotrack.config import load_config
from solotrack.data.catalog import register_custom
from solotrack.data.frames import FrameError
from solotrack.engine.streaming import VideoTracker, record, scored_categories, track_detections, tracked_categories
from solotrack.tracking.distance_tracker import DistanceTracker
from solotrack.tracking.embedding_tracker import EmbeddingTracker
from solotrack.tracking.finalize import TrackRecorder
from solotrack.tracking.iou_tracker import IoUTracker

CATEGORIES = {0: 11, 1: 12, 2: 13}


def make(blobs, tracker=None, **options) -> VideoTracker:
    options = {"min_size": 0, "decode_workers": 2} | options
    tracker = tracker or EmbeddingTracker(null_logit=4.0)
    return VideoTracker(blobs.Detector(), tracker, TrackRecorder, CATEGORIES, **options).eval()


def save_video(folder, images, video_id: int = 1) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for i, image in enumerate(images):
        names.append(str(folder / f"{i:05d}.png"))
        Image.fromarray(image).save(names[-1])
    height, width = image.shape[:2]
    return {"video_id": video_id, "file_names": names, "height": height, "width": width, "length": len(names)}


def decode_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("solotrack-decode")]


def test_tracks_are_the_coloured_squares(blobs):
    images = list(blobs.frames(10))
    tracks = make(blobs).track(images, video_id=7)
    assert len(tracks) == len(blobs.palette)
    seen = set()
    for track in tracks:
        assert track["video_id"] == 7 and len(track["segmentations"]) == 10
        present = [t for t, rle in enumerate(track["segmentations"]) if rle is not None]
        first = mask_util.decode(track["segmentations"][present[0]]).astype(bool)
        color = blobs.palette.index(tuple(images[present[0]][first][0]))
        seen.add(color)
        assert track["category_id"] == CATEGORIES[color % 3]
        for t, rle in enumerate(track["segmentations"]):
            truth = (images[t] == blobs.palette[color]).all(axis=2)
            assert (rle is None) == (not truth.any())
            if rle is not None:
                assert rle["size"] == [60, 80] and isinstance(rle["counts"], str)
                np.testing.assert_array_equal(mask_util.decode(rle), truth)
    assert seen == set(range(len(blobs.palette)))


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch", [1, 3, 8, 100])
def test_batching_and_reading_ahead_change_nothing(blobs, tmp_path, batch, workers):
    video = save_video(tmp_path, blobs.frames(11))
    expected = make(blobs, frames_per_batch=1, decode_workers=0).track(list(blobs.frames(11)))
    tracker = make(blobs, frames_per_batch=batch, decode_workers=workers)
    assert tracker.track(video) == expected
    assert [len(call) for call in tracker.model.calls] == [batch] * (11 // batch) + [11 % batch] * (11 % batch > 0)
    assert tracker.track(iter(blobs.frames(11))) == expected, "a second video starts anew"
    assert not decode_threads()


def test_frames_of_different_size_share_no_batch(blobs):
    sizes = [(60, 80)] * 3 + [(48, 64)] * 5 + [(60, 80)]
    images = [next(blobs.frames(1, *size, seed=i)) for i, size in enumerate(sizes)]
    tracker = make(blobs, frames_per_batch=4)
    tracks = tracker.track(images)
    assert [len(set(call)) for call in tracker.model.calls] == [1] * 4
    assert [len(call) for call in tracker.model.calls] == [3, 4, 1, 1]
    for t, size in enumerate(sizes):
        assert {tuple(x["segmentations"][t]["size"]) for x in tracks if x["segmentations"][t]} == {size}
    assert tracks == make(blobs, frames_per_batch=1).track(images)


@pytest.mark.parametrize("size", [(60, 80), (80, 60), (30, 200), (33, 47), (96, 128), (48, 64)])
def test_model_sees_what_detectron2_would_resize(blobs, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tracker = make(blobs, min_size=48, max_size=100, image_format="BGR")
    seen = []
    tracker.model.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    tracker.track([image])
    augmentation = T.ResizeShortestEdge([48, 48], 100)
    bgr = np.ascontiguousarray(image[..., ::-1])
    expected = augmentation.get_transform(bgr).apply_image(bgr)
    assert seen[0]["image"].dtype == torch.uint8
    np.testing.assert_array_equal(seen[0]["image"].numpy(), expected.transpose(2, 0, 1))
    assert (seen[0]["height"], seen[0]["width"]) == size


def test_stream_yields_every_frame_with_ids(blobs):
    images = list(blobs.frames(7))
    tracker = make(blobs, frames_per_batch=3)
    colors = {}
    for t, (frame, instances) in enumerate(tracker.stream(images)):
        assert frame.index == t
        np.testing.assert_array_equal(frame.image, images[t])
        assert instances.image_size == (60, 80) and instances.ID.dtype == torch.int64
        for identity, mask in zip(instances.ID.tolist(), instances.pred_masks.numpy(), strict=True):
            color = tuple(images[t][mask][0])
            assert colors.setdefault(identity, color) == color
    assert t == 6 and len(colors) == len(blobs.palette)


def test_stream_does_not_run_far_ahead(blobs):
    """Frames come out after their batch, while the source has been read by no more than the batch after and the reading threads' hands."""
    taken = []
    source = (taken.append(i) or image for i, image in enumerate(blobs.frames(200)))
    tracker = make(blobs, frames_per_batch=4, decode_workers=2)
    stream = tracker.stream(source)
    next(stream)
    assert len(tracker.model.calls) == 1
    assert len(taken) <= 4 + (4 + 2) + 1
    stream.close()
    assert not decode_threads()


def test_detection_and_tracking_apart(blobs):
    images = list(blobs.frames(9))
    tracker = make(blobs)
    detections = list(tracker.detect(images))
    assert not any(instances.has("ID") for _, instances in detections)
    recorder = TrackRecorder()
    linked = list(track_detections(detections, tracker.tracker, recorder))
    assert [frame.index for frame, _ in linked] == list(range(9))
    assert recorder.finish(1, 9, CATEGORIES) == tracker.track(images)


def test_several_trackers_on_the_same_detections(blobs):
    images = list(blobs.frames(12))
    trackers = {
        "embedding": EmbeddingTracker(null_logit=4.0),
        "distance": DistanceTracker(),
        "iou": IoUTracker(),
    }
    tracker = make(blobs, frames_per_batch=5)
    results = tracker.compare(images, trackers, video_id=3)
    assert [len(call) for call in tracker.model.calls] == [5, 5, 2], "the network runs once"
    for name in trackers:
        assert results[name] == make(blobs, trackers[name]).track(images, video_id=3)
    assert len(results["iou"]) > len(results["embedding"]) == len(blobs.palette), "squares that jump defeat overlap but not appearance"


def test_calibrated_null_logit_is_handed_over(blobs):
    tracker = make(blobs, EmbeddingTracker())
    images = list(blobs.frames(2))
    tracker.track(images)
    assert tracker.tracker.null_logit == 0.0, "NaN stands for not calibrated"
    tracker.model.embedding_head.null_logit.fill_(1e4)
    assert len(tracker.track(images)) > len(blobs.palette), "nothing reaches the null logit, so every detection is new"
    assert tracker.tracker.null_logit == 1e4
    other = EmbeddingTracker()
    tracker.compare(images, {"a": other})
    assert other.null_logit == 1e4
    assert make(blobs, IoUTracker()).track(images)


def test_no_gradients_no_inference_mode_and_autocast(blobs):
    image = next(blobs.frames(1))
    tracker = make(blobs)
    tracker.track([image])
    assert tracker.model.contexts == [(False, False, None)]
    tracker = make(blobs, autocast_dtype=torch.bfloat16)
    stream = tracker.stream([image])
    next(stream)
    assert tracker.model.contexts == [(False, False, torch.bfloat16)]
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"), "nothing leaks out of a stream that is under way"
    stream.close()


def test_training_mode_is_refused(blobs):
    with pytest.raises(RuntimeError, match=r"call eval\(\)"):
        make(blobs).train().track(list(blobs.frames(1)))


def test_only_tracked_masks_with_pixels_are_recorded():
    instances = Instances((8, 8))
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 2:5, 1:3] = True
    masks[1, 4:, 4:] = True
    instances.pred_masks = masks
    instances.pred_boxes = Boxes(torch.zeros(3, 4))
    instances.scores = torch.tensor([0.9, 0.8, 0.7])
    instances.pred_classes = torch.tensor([0, 1, 2])
    instances.ID = torch.tensor([4, -1, 5])
    recorder = TrackRecorder()
    record(recorder, 0, instances)
    record(recorder, 1, instances[:0])
    (track,) = recorder.finish(1, 2, CATEGORIES)
    np.testing.assert_array_equal(mask_util.decode(track["segmentations"][0]), masks[0].numpy())
    assert track["segmentations"][1] is None and track["category_id"] == 11


def test_nothing_to_see(blobs):
    grey = np.full((20, 20, 3), 90, np.uint8)
    tracker = make(blobs)
    assert tracker.track([grey] * 3) == []
    (track,) = (x for x in tracker.track([grey, next(blobs.frames(2, seed=2)), grey]) if x["category_id"] == 13)
    assert [rle is None for rle in track["segmentations"]] == [True, False, True]


def test_declared_size_is_checked(blobs, tmp_path):
    video = save_video(tmp_path, blobs.frames(3))
    tracker = make(blobs)
    assert len(tracker([video])[0]) == len(blobs.palette)
    Image.fromarray(next(blobs.frames(1, 40, 80))).save(video["file_names"][2])
    with pytest.raises(FrameError, match=r"00002\.png is 80x40 but its video is declared as 80x60"):
        tracker([video])
    assert tracker.track(video["file_names"]), "without a declared size frames may differ"
    assert not decode_threads()


def test_broken_frame_is_named(blobs, tmp_path):
    video = save_video(tmp_path, blobs.frames(6))
    with open(video["file_names"][4], "r+b") as file:
        file.truncate(60)
    with pytest.raises(FrameError, match=r"00004\.png"):
        make(blobs, frames_per_batch=2)([video])
    assert not decode_threads()


class _Collect(DatasetEvaluator):
    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [(x["video_id"], tracks) for x, tracks in zip(inputs, outputs, strict=True)]

    def evaluate(self):
        return {"tracks": sum(len(tracks) for _, tracks in self.seen)}


def test_inference_on_dataset(blobs, tmp_path):
    videos = [save_video(tmp_path / str(i), blobs.frames(4 + i, seed=i), video_id=10 + i) for i in range(3)]
    tracker = make(blobs).train()
    evaluator = _Collect()
    results = inference_on_dataset(tracker, [videos[:2], videos[2:]], evaluator)
    assert tracker.training and tracker.model.training, "the mode is put back"
    assert results == {"tracks": 3 * len(blobs.palette)}
    assert [video_id for video_id, _ in evaluator.seen] == [10, 11, 12]
    tracker.eval()
    for (video_id, tracks), video in zip(evaluator.seen, videos, strict=True):
        assert tracks == tracker.track(video, video_id)


@pytest.fixture
def registered(tmp_path):
    """A config with a training set of three categories and videos that have them in another order, with one more and one fewer."""
    images = [{"id": i + 1, "name": name} for i, name in enumerate(("dog", "cat", "bird"))]
    videos = [{"id": i, "name": name} for i, name in ((5, "fish"), (7, "cat"), (9, "dog"))]
    (tmp_path / "frames").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "frames" / "a.png")
    video = {"id": 1, "height": 4, "width": 4, "length": 1, "file_names": ["a.png"]}
    picture = {"id": 1, "height": 4, "width": 4, "file_name": "a.png"}
    for name, content in (
        ("train", {"images": [picture], "categories": images, "annotations": []}),
        ("test", {"videos": [video], "categories": videos, "annotations": []}),
        ("bare", {"videos": [video]}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    names = {name: f"{tmp_path.name}_{name}" for name in ("train", "test", "bare")}
    cfg = load_config("", ["MODEL.SOLO.NUM_CLASSES", "3", "TEST.FRAMES_PER_BATCH", "3", "MODEL.DEVICE", "cpu"])
    cfg.DATASETS.CUSTOM.IMAGES = [[names["train"], str(tmp_path / "train.json"), str(tmp_path / "frames")]]
    cfg.DATASETS.CUSTOM.VIDEOS = [[names[n], str(tmp_path / f"{n}.json"), str(tmp_path / "frames")] for n in ("test", "bare")]
    cfg.DATASETS.TRAIN = (names["train"],)
    register_custom(cfg)
    return cfg, names


def test_categories_of_the_data_set(registered, blobs):
    cfg, names = registered
    assert tracked_categories(cfg, names["test"]) == {0: 9, 1: 7}
    assert tracked_categories(cfg, names["bare"]) == {0: 1, 1: 2, 2: 3}
    assert scored_categories(cfg, names["test"]) is None
    cfg.DATASETS.VIDEO_CATEGORIES = "name20"
    assert tracked_categories(cfg, names["test"]) == {0: 9, 1: 7}
    assert scored_categories(cfg, names["test"]) == [7, 9]


def test_from_config(registered, blobs):
    cfg, names = registered
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 70
    cfg.TRACKER_HEADS.TRACK_SCORE = "max"
    cfg.SOLVER.AMP.ENABLED = True
    model = blobs.Detector().eval()
    model.embedding_head.null_logit.fill_(4.0)
    images = list(blobs.frames(4))
    tracks = VideoTracker.from_config(cfg, model, names["test"]).eval().track(images)
    assert sorted({x["category_id"] for x in tracks}) == [7, 9], "class 2 is no category of the videos"
    assert len(tracks) == 4
    assert [len(call) for call in model.calls] == [3, 1]
    assert model.calls[0][0] == (3, 48, 64)
    assert model.contexts[0][2] == torch.bfloat16
    frame_scores = [x.scores.max().item() for _, x in VideoTracker.from_config(cfg, model).eval().detect(images)]
    everything = VideoTracker.from_config(cfg, model).eval().track(images)
    assert sorted({x["category_id"] for x in everything}) == [1, 2, 3]
    assert max(x["score"] for x in everything) == pytest.approx(max(frame_scores))


_MEMORY_SCRIPT = """
import importlib.util, resource, sys, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("blobs", sys.argv[1])
blobs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(blobs)
from solotrack.engine.streaming import VideoTracker
from solotrack.tracking.embedding_tracker import EmbeddingTracker
from solotrack.tracking.finalize import TrackRecorder
tracker = VideoTracker(blobs.BlobDetector(), EmbeddingTracker(null_logit=4.0), TrackRecorder, range(1, 4), min_size=0).eval()
for length in (100, 1000):
    tracks = tracker.track(blobs.blob_frames(length, 160, 160))
    assert all(len(track["segmentations"]) == length for track in tracks) and len(tracks) == 5
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_length(blobs, repo_root):
    """900 more frames have 69 MB of pixels and 115 MB of masks; had either been kept, the peak would show it."""
    script = [sys.executable, "-W", "ignore", "-c", _MEMORY_SCRIPT, str(repo_root / "tests" / "engine" / "conftest.py")]
    run = subprocess.run(script, cwd=repo_root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    short, long = map(int, run.stdout.split())
    assert long - short < 40_000, f"peak {short} kB for 100 frames, {long} kB for 1,000"
    assert long <= 1.1 * short
