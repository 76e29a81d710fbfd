"""IoUTracker+ against a literal, slow loop of METHOD 7.4."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from solotrack.config import load_config
from solotrack.tracking import IoUTrackerPlus

SIZE = (20, 24)


def frame(boxes: np.ndarray, scores: list[float], classes: list[int]) -> Instances:
    """Boxes (n, 4) of whole pixels; masks fill them."""
    ys, xs = np.arange(SIZE[0])[:, None], np.arange(SIZE[1])
    instances = Instances(SIZE)
    masks = [(xs >= x1) & (xs < x2) & (ys >= y1) & (ys < y2) for x1, y1, x2, y2 in boxes]
    instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *SIZE))
    instances.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def overlap(a: tuple, b: tuple, one: int) -> float:
    """IoU of boxes; ``one`` = 1 counts right and bottom as inclusive."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + one
    height = min(a[3], b[3]) - max(a[1], b[1]) + one
    area = [(x2 - x1 + one) * (y2 - y1 + one) for x1, y1, x2, y2 in (a, b)]
    inter = max(width, 0) * max(height, 0)
    return inter / (sum(area) - inter)


class Reference:
    """One detection after the other; a track is a box and a class."""

    def __init__(self, min_iou: float, loser: str, weights: tuple[float, float, float], one: int) -> None:
        self.min_iou, self.loser, self.weights, self.one = min_iou, loser, weights, one
        self.tracks: list[dict] = []

    def update(self, instances: Instances) -> list[int]:
        by_score, by_iou, by_class = self.weights
        boxes, classes = instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist()
        wish = {}  # detection -> (its value, track)
        for n, (box, label, score) in enumerate(zip(boxes, classes, instances.scores.tolist(), strict=True)):
            for k, track in enumerate(self.tracks):
                iou = overlap(box, track["box"], self.one)
                value = by_score * math.log(score) + by_iou * iou + by_class * (label == track["class"])
                if iou > 0 and iou >= self.min_iou and value > wish.get(n, (-math.inf, -1))[0] + 1e-6:
                    wish[n] = (value, k)
        ids = [-1] * len(boxes)
        for n, (value, k) in wish.items():
            rivals = [(other, -m) for m, (other, j) in wish.items() if j == k]
            if (value, -n) == max(rivals):
                ids[n] = k
        for n in range(len(boxes)):
            if n not in wish or (ids[n] < 0 and self.loser == "new"):
                ids[n] = len(self.tracks)
                self.tracks.append({"box": boxes[n], "class": classes[n]})
            elif ids[n] >= 0:
                self.tracks[ids[n]]["box"] = boxes[n]
        return ids


@pytest.mark.parametrize("iou_type", ["box", "mask"])
def test_equals_reference(iou_type: str) -> None:
    rng = np.random.default_rng(len(iou_type))
    linked = dropped = flipped = 0
    for case in range(60):
        weights = [(1.0, 2.0, 10.0), (0.5, 4.0, 0.3)][case % 2]
        min_iou, loser = [0.3, 0.05, 0.0][case % 3], ["drop", "new"][case // 2 % 2]
        tracker = IoUTrackerPlus(
            **{"min_iou": min_iou, "loser": loser, "cue_iou_type": iou_type},
            **{"cue_score": weights[0], "cue_iou": weights[1], "cue_class": weights[2]},
        )
        reference = Reference(min_iou, loser, weights, one=int(iou_type == "box"))
        for _ in range(6):
            n = int(rng.integers(0, 7))
            corner = rng.integers(0, 10, (n, 2))
            boxes = np.concatenate((corner, corner + rng.integers(4, 11, (n, 2))), axis=1)
            detections = frame(boxes, np.sort(rng.uniform(0.05, 1, n))[::-1].tolist(), rng.integers(0, 2, n).tolist())
            before = [track["class"] for track in reference.tracks]
            expected = reference.update(detections)
            assert tracker.update(detections).ID.tolist() == expected
            linked += sum(0 <= i < len(before) for i in expected)
            dropped += expected.count(-1)
            flipped += sum(0 <= i < len(before) and before[i] != c for i, c in zip(expected, detections.pred_classes, strict=True))
    assert min(linked, dropped, flipped) > 20  # the cases are not all easy


def ids(tracker: IoUTrackerPlus, *frames: Instances) -> list[list[int]]:
    return [tracker.update(x).ID.tolist() for x in frames]


def bars(*starts: int, scores: tuple[float, ...] = (), classes: tuple[int, ...] = ()) -> Instances:
    """Boxes of 10 x 4 pixels from column ``start``."""
    boxes = np.array([(s, 0, s + 10, 4) for s in starts])
    return frame(boxes, list(scores) or [0.9] * len(starts), list(classes) or [0] * len(starts))


def test_threshold() -> None:
    """Inclusive pixels: bars of 11 x 5 at a distance of 5 and 6 have the IoU 6/16 and 5/17."""
    assert ids(IoUTrackerPlus(), bars(0), bars(5)) == [[0], [0]]
    assert ids(IoUTrackerPlus(), bars(0), bars(6)) == [[0], [1]]
    assert ids(IoUTrackerPlus(min_iou=0.2), bars(0), bars(6)) == [[0], [0]]
    assert ids(IoUTrackerPlus(min_iou=0.0), bars(0), bars(12)) == [[0], [1]], "without overlap there is no link"


def test_class_before_overlap_before_score() -> None:
    two = bars(0, 4, classes=(0, 1))
    assert ids(IoUTrackerPlus(), two, bars(3, classes=(0,))) == [[0, 1], [0]], "nearer to the other, but of this class"
    assert ids(IoUTrackerPlus(), two, bars(0, classes=(1,))) == [[0, 1], [1]]
    assert ids(IoUTrackerPlus(), bars(0), bars(0, classes=(1,))) == [[0], [0]], "a class alone keeps nothing apart"
    assert ids(IoUTrackerPlus(), bars(0), bars(1, 0, scores=(0.9, 0.8))) == [[0], [-1, 0]]
    assert ids(IoUTrackerPlus(), bars(0), bars(1, 0, scores=(0.9, 0.5))) == [[0], [0, -1]]


def test_a_loser_is_dropped_or_new() -> None:
    assert ids(IoUTrackerPlus(loser="new"), bars(0), bars(0, 1)) == [[0], [0, 1]]
    assert ids(IoUTrackerPlus(), bars(0), bars(0, 1)) == [[0], [0, -1]]


def test_hungarian_finds_a_second_choice() -> None:
    """Both want the first track (IoU 10/12 and 8/14); the second detection is worth more on the other than nothing."""
    frames = bars(0, 6), bars(1, 3, scores=(0.9, 0.8))
    assert ids(IoUTrackerPlus(), *frames) == [[0, 1], [0, -1]]
    assert ids(IoUTrackerPlus(assignment="hungarian"), *frames) == [[0, 1], [0, 1]]
    assert ids(IoUTrackerPlus(assignment="hungarian"), bars(0), bars(12)) == [[0], [1]]


def test_tracks_never_end_unless_told() -> None:
    nothing = bars(0)[:0]
    assert ids(IoUTrackerPlus(), bars(0), *[nothing] * 9, bars(0))[-1] == [0]
    assert ids(IoUTrackerPlus(retain=9), bars(0), *[nothing] * 9, bars(0))[-1] == [1]


def test_built_from_config() -> None:
    words = {
        "TRACKER_NAME": "IoUTrackerPlus",
        "IOU.MIN": "0.5",
        "LOSER": "new",
        "CUES.SCORE": "3.0",
        "CUES.IOU": "4.0",
        "CUES.CLASS": "5.0",
    }
    cfg = load_config("", [x for key, value in words.items() for x in (f"TRACKER_HEADS.{key}", value)])
    arguments = IoUTrackerPlus.from_config(cfg)
    assert [arguments[key] for key in ("min_iou", "loser", "cue_score", "cue_iou", "cue_class")] == [0.5, "new", 3.0, 4.0, 5.0]
    IoUTrackerPlus(cfg)
