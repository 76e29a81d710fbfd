"""Linking by overlap against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from solotrack.config import load_config
from solotrack.tracking import IoUTracker


def detections(masks: np.ndarray, classes: list[int] | None = None) -> Instances:
    """Masks (n, H, W), by score descending; boxes are the tight ones."""
    n = len(masks)
    boxes = np.zeros((n, 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        ys, xs = np.nonzero(mask)
        if len(ys):
            box[:] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    instances = Instances(masks.shape[1:])
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    instances.scores = torch.linspace(0.9, 0.5, n)
    instances.pred_classes = torch.tensor(classes or [0] * n, dtype=torch.int64)[:n]
    return instances


def bars(*starts: int, width: int = 10, size: tuple[int, int] = (4, 60)) -> np.ndarray:
    """Full-height bars from column ``start``."""
    columns = np.arange(size[1])
    return np.stack([np.broadcast_to((columns >= s) & (columns < s + width), size) for s in starts])


def overlap(a: dict, b: dict, kind: str) -> float:
    if kind == "mask":
        union = (a["mask"] | b["mask"]).sum()
        return (a["mask"] & b["mask"]).sum() / union if union else 0.0
    p, q = a["box"], b["box"]
    inter = max(0, min(p[2], q[2]) - max(p[0], q[0])) * max(0, min(p[3], q[3]) - max(p[1], q[1]))
    union = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - inter
    return inter / union if union else 0.0


class Reference:
    """Loops over pairs; tracks are dictionaries."""

    def __init__(self, min_iou: float, iou_type: str, same_class: bool, retain: int) -> None:
        self.min_iou, self.iou_type, self.same_class, self.retain = min_iou, iou_type, same_class, retain
        self.tracks: list[dict] = []
        self.count, self.frame = 0, -1

    def update(self, instances: Instances) -> list[int]:
        self.frame += 1
        if self.retain:
            self.tracks = [t for t in self.tracks if self.frame - t["frame"] <= self.retain]
        fields = (instances.pred_masks.numpy(), instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist())
        seen = [{"mask": m, "box": b, "class": c, "frame": self.frame} for m, b, c in zip(*fields, strict=True)]
        pairs = []
        for i, a in enumerate(seen):
            for j, b in enumerate(self.tracks):
                iou = overlap(a, b, self.iou_type)
                if iou > 0 and iou >= self.min_iou and (not self.same_class or a["class"] == b["class"]):
                    pairs.append((-round(iou, 6), i, j))
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


@pytest.mark.parametrize("iou_type", ["mask", "box"])
def test_equals_reference(iou_type: str) -> None:
    rng = np.random.default_rng(len(iou_type))
    found = 0
    for case in range(40):
        arguments = {"min_iou": [0.3, 0.11, 0.0][case % 3], "iou_type": iou_type, "same_class": case % 2 == 0, "retain": case % 4}
        tracker, reference = IoUTracker(**arguments), Reference(**arguments)
        for _ in range(6):
            n = int(rng.integers(0, 7))
            masks = np.zeros((n, 20, 24), dtype=bool)
            for mask in masks:
                x, y, w, h = rng.integers([0, 0, 4, 4], [18, 14, 12, 12])
                mask[y : y + h, x : x + w] = rng.random(mask[y : y + h, x : x + w].shape) < 0.8
            frame = detections(masks, rng.integers(0, 2, n).tolist())
            before = reference.count
            expected = reference.update(frame)
            found += sum(i < before for i in expected)
            assert tracker.update(frame).ID.tolist() == expected
    assert found > 50


def test_threshold() -> None:
    for shift, expected in ((5, 0), (6, 1)):  # IoU 5/15 and 4/16
        tracker = IoUTracker(min_iou=0.3)
        tracker.update(detections(bars(0)))
        assert tracker.update(detections(bars(shift))).ID.tolist() == [expected]


def test_without_overlap_there_is_no_link() -> None:
    tracker = IoUTracker(min_iou=0.0)
    tracker.update(detections(bars(0)))
    assert tracker.update(detections(bars(30))).ID.tolist() == [1]


def test_greedy_and_hungarian_differ() -> None:
    results = {}
    for assignment in ("greedy", "hungarian"):
        tracker = IoUTracker(min_iou=0.01, assignment=assignment)
        tracker.update(detections(bars(10, 19)))
        results[assignment] = tracker.update(detections(bars(13, 5))).ID.tolist()
    # IoU of the bar at 13 with those at 10 and 19: 7/13, 4/16; of the bar at 5 with that at 10: 5/15. 4/16 + 5/15 > 7/13.
    assert results == {"greedy": [0, 2], "hungarian": [1, 0]}


def test_class_and_retain() -> None:
    same, other, empty = detections(bars(0)), detections(bars(0), [1]), detections(bars(0)[:0])
    for arguments, expected in (
        ({}, [0, 1, 0]),
        ({"same_class": False}, [0, 0, 0]),
        ({"retain": 3}, [0, 1, 0]),
        ({"retain": 2}, [0, 1, 2]),
        ({"retain": 0}, [0, 1, 0]),
    ):
        tracker = IoUTracker(**arguments)
        assert [i for f in (same, other, empty, same) for i in tracker.update(f).ID.tolist()] == expected


@pytest.mark.parametrize("iou_type", ["mask", "box"])
def test_frames_of_another_size_show_the_same_view(iou_type: str) -> None:
    tracker = IoUTracker(iou_type=iou_type)
    tracker.update(detections(bars(0, 40)))
    assert tracker.update(detections(bars(80, 0, width=20, size=(8, 120)))).ID.tolist() == [1, 0]
    assert tracker.update(detections(bars(0, 40))).ID.tolist() == [0, 1]


def test_empty_masks_start_tracks_and_match_nothing() -> None:
    tracker = IoUTracker(min_iou=0.0)
    empty = detections(np.zeros((1, 4, 60), dtype=bool))
    assert [tracker.update(empty).ID.tolist() for _ in range(2)] == [[0], [1]]


def test_built_from_config() -> None:
    cfg = load_config("", ["TRACKER_HEADS.IOU.MIN", "0.5", "TRACKER_HEADS.IOU.TYPE", "box", "TRACKER_HEADS.IOU.SAME_CLASS", "False"])
    arguments = IoUTracker.from_config(cfg)
    assert (arguments["min_iou"], arguments["iou_type"], arguments["same_class"]) == (0.5, "box", False)
    IoUTracker(cfg)
