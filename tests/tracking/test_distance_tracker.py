"""The SOLO baseline against a slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from solotrack.config import load_config
from solotrack.tracking import DistanceTracker


def detections(boxes: list[tuple[int, int, int, int]], classes: list[int] | None = None, size: tuple[int, int] = (40, 60)) -> Instances:
    """Full rectangles, by score descending."""
    n = len(boxes)
    masks = np.zeros((n, *size), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    instances = Instances(size)
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(n, 4))
    instances.scores = torch.linspace(0.9, 0.5, n)
    instances.pred_classes = torch.tensor(classes or [0] * n, dtype=torch.int64)[:n]
    return instances


class Reference:
    """Loops over pairs; tracks are dictionaries."""

    def __init__(self, max_distance: float, same_class: bool, retain: int) -> None:
        self.max_distance, self.same_class, self.retain = max_distance, same_class, retain
        self.tracks: list[dict] = []
        self.count, self.frame = 0, -1

    def update(self, instances: Instances) -> list[int]:
        self.frame += 1
        if self.retain:
            self.tracks = [t for t in self.tracks if self.frame - t["frame"] <= self.retain]
        seen = []
        for mask, box, label in zip(
            instances.pred_masks.numpy(), instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist(), strict=True
        ):
            ys, xs = np.nonzero(mask)
            seen.append(
                {"x": xs.mean(), "y": ys.mean(), "area": (box[2] - box[0]) * (box[3] - box[1]), "class": label, "frame": self.frame}
            )
        pairs = []
        for i, a in enumerate(seen):
            for j, b in enumerate(self.tracks):
                distance = math.hypot(a["x"] - b["x"], a["y"] - b["y"]) / math.sqrt((a["area"] + b["area"]) / 2)
                if distance <= self.max_distance and (not self.same_class or a["class"] == b["class"]):
                    pairs.append((round(distance, 5), i, j))
        ids, taken = [-1] * len(seen), set()
        for _, i, j in sorted(pairs):
            if ids[i] < 0 and j not in taken:
                taken.add(j)
                ids[i] = self.tracks[j]["id"]
                self.tracks[j] |= seen[i] | {"class": self.tracks[j]["class"]}
        for i, a in enumerate(seen):
            if ids[i] < 0:
                ids[i] = self.count
                self.count += 1
                self.tracks.append(a | {"id": ids[i]})
        return ids


@pytest.mark.parametrize("same_class", [True, False])
def test_equals_reference(same_class: bool) -> None:
    rng = np.random.default_rng(int(same_class))
    found = 0
    for case in range(40):
        arguments = {"max_distance": [1.0, 2.0][case % 2], "same_class": same_class, "retain": case % 3}
        tracker, reference = DistanceTracker(**arguments), Reference(**arguments)
        for _ in range(6):
            n = int(rng.integers(0, 7))
            corners = rng.integers(0, [50, 30], (n, 2))
            boxes = np.concatenate((corners, corners + rng.integers(2, 10, (n, 2))), axis=1)
            frame = detections([tuple(b) for b in boxes.tolist()], rng.integers(0, 2, n).tolist())
            before = reference.count
            expected = reference.update(frame)
            found += sum(i < before for i in expected)
            assert tracker.update(frame).ID.tolist() == expected
    assert found > 50


def test_distance_is_measured_in_object_sizes() -> None:
    for side in (4, 8):  # an object that moves by its own size, then by a little more
        tracker = DistanceTracker()
        assert tracker.update(detections([(0, 0, side, side)])).ID.tolist() == [0]
        assert tracker.update(detections([(side, 0, 2 * side, side)])).ID.tolist() == [0]
        assert tracker.update(detections([(2 * side + 1, 0, 3 * side + 1, side)])).ID.tolist() == [1]


def test_class_and_retain() -> None:
    frames = [detections([(0, 0, 8, 8)]), detections([(0, 0, 8, 8)], [1]), *[detections([])] * 3, detections([(0, 0, 8, 8)])]
    assert [DistanceTracker().update(frames[0]).ID.tolist()] == [[0]]
    assert [i for t in [DistanceTracker()] for f in frames for i in t.update(f).ID.tolist()] == [0, 1, 0]
    assert [i for t in [DistanceTracker(same_class=False)] for f in frames for i in t.update(f).ID.tolist()] == [0, 0, 0]
    assert [i for t in [DistanceTracker(retain=4)] for f in frames for i in t.update(f).ID.tolist()] == [0, 1, 2]


def test_greedy_and_hungarian_differ() -> None:
    """Tracks at x = 0 and 10; detections at 4 (nearer to 0) and -6 (too far from 10)."""
    first, second = detections([(10, 0, 20, 10), (20, 0, 30, 10)]), detections([(14, 0, 24, 10), (4, 0, 14, 10)])
    results = {}
    for assignment in ("greedy", "hungarian"):
        tracker = DistanceTracker(assignment=assignment)
        tracker.update(first)
        results[assignment] = tracker.update(second).ID.tolist()
    assert results == {"greedy": [0, 2], "hungarian": [1, 0]}


def test_a_neighbour_starts_its_own_track() -> None:
    tracker = DistanceTracker()
    tracker.update(detections([(0, 0, 8, 8)]))
    assert tracker.update(detections([(0, 0, 8, 8), (6, 0, 14, 8)])).ID.tolist() == [0, 1]


def test_frames_of_another_size_show_the_same_view() -> None:
    tracker = DistanceTracker()
    tracker.update(detections([(0, 0, 4, 4), (50, 30, 54, 34)]))
    large = tracker.update(detections([(100, 60, 108, 68), (0, 0, 8, 8)], size=(80, 120)))
    assert large.ID.tolist() == [1, 0]


def test_empty_masks_do_not_break_it() -> None:
    tracker = DistanceTracker()
    for _ in range(2):
        out = tracker.update(detections([(0, 0, 0, 0), (5, 5, 9, 9)]))
        assert out.ID.tolist() == [0, 1]


def test_built_from_config() -> None:
    cfg = load_config(
        "", ["TRACKER_HEADS.DISTANCE.MAX", "0.5", "TRACKER_HEADS.DISTANCE.SAME_CLASS", "False", "TRACKER_HEADS.ASSIGN", "hungarian"]
    )
    arguments = DistanceTracker.from_config(cfg)
    assert (arguments["max_distance"], arguments["same_class"], arguments["assignment"]) == (0.5, False, "hungarian")
    DistanceTracker(cfg)
