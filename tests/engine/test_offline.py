"""An offline tracker in streaming inference: the same results by every way, and no mask waits for the video's end."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from solotrack.config import ConfigError, load_config
from solotrack.data.frames import FrameError, open_frames
from solotrack.engine.offline import PendingVideo
from solotrack.engine.predictor import VideoPredictor
from solotrack.engine.streaming import VideoTracker
from solotrack.tracking.finalize import TrackRecorder
from solotrack.tracking.iou_tracker import IoUTracker
from solotrack.tracking.seq_tracker import SeqTracker

CATEGORIES = {0: 11, 1: 12, 2: 13}


def make(blobs, tracker=None, **options) -> VideoTracker:
    tracker = tracker or SeqTracker(min_iou=0.0)
    return VideoTracker(blobs.Detector(), tracker, TrackRecorder, CATEGORIES, min_size=0, **options).eval()


def slow(blobs, length: int = 8) -> list[np.ndarray]:
    """A video whose squares move by a pixel a frame, and whose fourth frame is grey."""
    first = next(blobs.frames(2, seed=1))
    images = [np.roll(first, t, axis=1) for t in range(length)]
    images[3] = np.full_like(first, 90)
    return images


def test_tracking_comparing_and_streaming_agree(blobs):
    images = slow(blobs)
    tracker = make(blobs, frames_per_batch=3)
    expected = tracker.track(images, video_id=4)
    assert [len(call) for call in tracker.model.calls] == [3, 3, 2]
    assert {x["video_id"] for x in expected} == {4} and len(expected) > 5
    assert all(x["segmentations"][3] is None and len(x["segmentations"]) == 8 for x in expected), "the grey frame cuts every track"

    both = tracker.compare(images, {"seq": SeqTracker(min_iou=0.0), "iou": IoUTracker()}, video_id=4)
    assert both["seq"] == expected and both["iou"] == make(blobs, IoUTracker()).track(images, video_id=4)

    recorder = TrackRecorder()
    streamed = list(tracker.stream(images, recorder))
    assert recorder.finish(4, 8, CATEGORIES) == expected
    for (frame, instances), (other, detected) in zip(streamed, tracker.detect(images), strict=True):
        np.testing.assert_array_equal(frame.image, images[frame.index])
        assert frame.index == other.index and instances.image_size == detected.image_size
        assert torch.equal(instances.pred_masks, detected.pred_masks) and instances.pred_masks.dtype == torch.bool
        assert torch.equal(instances.pred_boxes.tensor, detected.pred_boxes.tensor)
        assert torch.equal(instances.scores, detected.scores) and instances.ID.dtype == torch.int64
    assert tracker.track(iter(images), video_id=4) == expected, "without frames to show, once is enough"


def test_a_stream_that_is_given_up(blobs):
    images = slow(blobs)
    recorder = TrackRecorder()
    stream = make(blobs).stream(images, recorder)
    for _ in range(2):
        next(stream)
    stream.close()
    assert {len(x["segmentations"]) for x in recorder.finish(1, 2, CATEGORIES)} == {2}


def test_no_mask_waits(blobs):
    alive: list[weakref.ref] = []
    tracker = make(blobs, frames_per_batch=1, decode_workers=0)
    detect, most = tracker.model.detect, []

    def spy(x: dict):
        instances = detect(x)
        alive.append(weakref.ref(instances.pred_masks))
        most.append(sum(mask() is not None for mask in alive))
        return instances

    tracker.model.detect = spy
    tracker.track(slow(blobs, 12))
    assert len(most) == 12 and max(most) <= 3


def test_frames_that_come_once_cannot_be_streamed(blobs):
    tracker = make(blobs)
    for source in (iter(slow(blobs)), open_frames(iter(slow(blobs)))):
        with pytest.raises(FrameError, match=r"SeqTracker is an offline tracker and reads a video twice"):
            next(tracker.stream(source))
    assert not tracker.model.calls, "it shows before the network runs"
    assert next(tracker.stream(open_frames(slow(blobs))))[0].index == 0


def test_the_predictor(blobs):
    keys = ["MODEL.DEVICE", "cpu", "MODEL.SOLO.NUM_CLASSES", "3", "INPUT.MIN_SIZE_TEST", "0", "TRACKER_HEADS.TRACKER_NAME", "SeqTracker"]
    predictor = VideoPredictor(load_config("", [*keys, "TRACKER_HEADS.SEQ.MIN_IOU", "0.0"]), blobs.Detector(), ["a", "b", "c"])
    images = slow(blobs)
    tracks = predictor.track(images)
    assert tracks.length == 8 and [track.segmentations for track in tracks.tracks] == [
        x["segmentations"] for x in make(blobs).track(images)
    ]
    for track in tracks.tracks:
        assert [score is None for score in track.frame_scores] == [rle is None for rle in track.segmentations]
    with pytest.raises(ConfigError, match=r"TRACKER_NAME SeqTracker is an offline tracker"):
        predictor.update(images[0])


def test_empty_masks_have_no_track(blobs):
    video = PendingVideo(SeqTracker())
    (_, instances), *_ = make(blobs).detect(slow(blobs))
    instances.pred_masks = torch.zeros_like(instances.pred_masks)
    video.add(0, instances)
    recorder = TrackRecorder()
    video.record(recorder)
    assert recorder.finish(1, 1, CATEGORIES) == []
