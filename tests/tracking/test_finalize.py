"""Track results: METHOD 5.5, 5.6 and T13."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from solotrack.tracking import TrackRecorder

CATEGORY = {0: 11, 1: 12, 2: 5}


def rle(pixels: int) -> dict:
    mask = np.zeros((4, 6), dtype=np.uint8, order="F")
    mask.reshape(-1, order="F")[:pixels] = 1
    encoded = mask_util.encode(mask)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def record(recorder: TrackRecorder, scores: list[float], classes: list[int]) -> dict:
    for i, (score, label) in enumerate(zip(scores, classes, strict=True)):
        recorder.add(i, [0], [rle(3)], [score], [label])
    (result,) = recorder.finish(1, len(scores), CATEGORY)
    return result


def test_results() -> None:
    recorder = TrackRecorder()
    recorder.add(0, torch.tensor([1, 0]), [rle(3), rle(4)], torch.tensor([0.75, 0.5]), torch.tensor([0, 1]))
    recorder.add(1, [-1, 1], [rle(5), rle(6)], [0.9, 0.25], [0, 0])
    recorder.add(2, [], [], [], [])
    recorder.add(3, np.array([1, 0, 2]), [rle(0), rle(7), rle(0)], np.array([0.1, 1.0, 0.3]), np.array([2, 1, 0]))
    results = recorder.finish(video_id=8, length=5, class_to_dataset_id=CATEGORY)
    assert results == [
        {"video_id": 8, "category_id": 12, "score": 0.75, "segmentations": [rle(4), None, None, rle(7), None]},
        {"video_id": 8, "category_id": 11, "score": 0.5, "segmentations": [rle(3), rle(6), None, None, None]},  # the empty mask is no mask
    ]  # and the third track never had one
    assert json.loads(json.dumps(results)) == results
    assert recorder.finish(9, 5, CATEGORY) == []  # ready for the next video
    recorder.add(0, [0], [rle(2)], [0.5], [0])
    assert len(recorder.finish(9, 1, CATEGORY)) == 1


def test_no_detections() -> None:
    recorder = TrackRecorder()
    recorder.add(0, torch.empty(0, dtype=torch.int64), [], torch.empty(0), torch.empty(0, dtype=torch.int64))
    assert recorder.finish(1, 1, CATEGORY) == []


@pytest.mark.parametrize(("kind", "expected"), [("mean", 0.4), ("max", 0.8), ("mean_topk", 0.65)])
def test_scores(kind: str, expected: float) -> None:
    scores = [0.5, 0.2, 0.8, 0.1]
    assert record(TrackRecorder(kind, topk=2), scores, [0] * 4)["score"] == pytest.approx(expected)
    assert record(TrackRecorder(kind, topk=9), scores[:1], [0])["score"] == 0.5


def test_categories() -> None:
    # Class 2 is category 5, the smallest: it wins the tie with class 0, category 11.
    assert record(TrackRecorder(), [0.9, 0.9, 0.1, 0.1], [0, 0, 2, 2])["category_id"] == 5
    assert record(TrackRecorder(), [0.9, 0.1, 0.1], [0, 1, 1])["category_id"] == 12
    assert record(TrackRecorder(track_category="score_weighted"), [0.9, 0.1, 0.1], [0, 1, 1])["category_id"] == 11
    assert record(TrackRecorder(track_category="score_weighted"), [0.5, 0.25, 0.25], [0, 2, 2])["category_id"] == 5


def test_classes_of_one_category_vote_together() -> None:
    recorder = TrackRecorder()
    for i, label in enumerate([0, 0, 1, 2]):
        recorder.add(i, [0], [rle(3)], [0.5], [label])
    assert recorder.finish(1, 4, [30, 40, 40])[0]["category_id"] == 30
    for i, label in enumerate([0, 0, 1, 2, 2]):
        recorder.add(i, [0], [rle(3)], [0.5], [label])
    assert recorder.finish(1, 5, [30, 40, 40])[0]["category_id"] == 40


def test_results_are_plain_numbers() -> None:
    result = record(TrackRecorder(), [0.5], [0])
    assert {key: type(value) for key, value in result.items()} == {
        "video_id": int,
        "category_id": int,
        "score": float,
        "segmentations": list,
    }


def test_errors() -> None:
    recorder = TrackRecorder()
    with pytest.raises(ValueError, match="2 ids, 1 masks"):
        recorder.add(0, [0, 1], [rle(3)], [0.5, 0.5], [0, 0])
    recorder.add(2, [0], [rle(3)], [0.5], [7])
    for again in (2, 1):
        with pytest.raises(ValueError, match="already has a mask in frame 2"):
            recorder.add(again, [0], [rle(3)], [0.5], [0])
    with pytest.raises(ValueError, match="has 2 frames"):
        recorder.finish(1, 2, CATEGORY)
    recorder.add(0, [0], [rle(3)], [0.5], [7])
    with pytest.raises(ValueError, match="class_ids"):
        recorder.finish(1, 3, CATEGORY)
    with pytest.raises(ValueError, match="mean_topk"):
        TrackRecorder("median")
    with pytest.raises(ValueError, match="score_weighted"):
        TrackRecorder(track_category="first")
