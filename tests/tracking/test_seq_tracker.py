"""The best paths, against a search through all paths of tiny videos, and what offline trackers share (tracking/offline.py)."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.tracking.base_tracker import build_tracker_head

from solotrack.config import ConfigError, load_config
from solotrack.tracking import OfflineTracker, SeqTracker
from solotrack.tracking.seq_tracker import best_paths

SIZE = (24, 40)


def frame(boxes: list | np.ndarray, scores: list[float] | None = None, classes: list[int] | None = None, size=SIZE) -> Instances:
    boxes = torch.as_tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4))
    instances = Instances(size)
    ys, xs = torch.arange(size[0])[:, None], torch.arange(size[1])
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    instances.pred_masks = (xs >= x1) & (xs < x2) & (ys >= y1) & (ys < y2)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor(scores if scores is not None else [0.9] * len(boxes), dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes if classes is not None else [0] * len(boxes), dtype=torch.int64)
    return instances


def bars(*starts: int, scores: list[float] | None = None, classes: list[int] | None = None) -> Instances:
    """Boxes of 9 x 4 pixels (10 x 5 inclusive) from column ``start``."""
    return frame([(s, 0, s + 9, 4) for s in starts], scores, classes)


def link(tracker: SeqTracker, *frames: Instances) -> list[list[int]]:
    tracker.reset()
    for instances in frames:
        tracker.add(instances)
    return [ids.tolist() for ids in tracker.link()]


# ---- against all paths


def overlap(a: list[float], b: list[float]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    areas = [(x2 - x1 + 1) * (y2 - y1 + 1) for x1, y1, x2, y2 in (a, b)]
    inter = max(width, 0) * max(height, 0)
    return inter / (sum(areas) - inter)


def all_paths(video: list[list[dict]], min_iou: float, weights: tuple[float, float, float]):
    """Yield (score, [(frame, detection), ...]) of every path there is."""

    def extend(path: list[tuple[int, int]], score: float):
        yield score, path
        t, n = path[-1]
        if t + 1 == len(video):
            return
        for m, other in enumerate(video[t + 1]):
            iou = overlap(video[t][n]["box"], other["box"])
            if iou > min_iou and not other["gone"]:
                gain = weights[0] * iou + weights[1] * (other["class"] == video[t][n]["class"]) - weights[2]
                yield from extend([*path, (t + 1, m)], score + other["score"] + gain)

    for t, detections in enumerate(video):
        for n, detection in enumerate(detections):
            if not detection["gone"]:
                yield from extend([(t, n)], detection["score"])


def reference(frames: list[Instances], min_iou: float, weights: tuple[float, float, float], nms: float, limit: int) -> list[list[int]]:
    video = [
        [{"box": b, "score": s, "class": c, "gone": False} for b, s, c in zip(boxes, scores, classes, strict=True)]
        for boxes, scores, classes in ((x.pred_boxes.tensor.tolist(), x.scores.double().tolist(), x.pred_classes.tolist()) for x in frames)
    ]
    ids = [[-1] * len(detections) for detections in video]
    count = 0
    while limit == 0 or count < limit:
        _, path = max(all_paths(video, min_iou, weights), default=(0, None), key=lambda x: x[0])
        if path is None:
            break
        for t, n in path:
            ids[t][n] = count
            for m, other in enumerate(video[t]):
                other["gone"] |= m == n or overlap(video[t][n]["box"], other["box"]) > nms
        count += 1
    return ids


def random_video(rng: np.random.Generator, length: int, most: int) -> list[Instances]:
    frames = []
    for _ in range(length):
        n = int(rng.integers(0, most + 1))
        corner = rng.integers(0, 12, (n, 2))
        boxes = np.concatenate((corner, corner + rng.integers(6, 12, (n, 2))), axis=1)
        frames.append(frame(boxes, np.sort(rng.uniform(0.05, 1, n))[::-1].tolist(), rng.integers(0, 2, n).tolist()))
    return frames


def test_equals_a_search_through_all_paths() -> None:
    rng = np.random.default_rng(0)
    long = suppressed = flips = later = 0
    for case in range(80):
        weights = [(2.0, 10.0, 10.0), (2.0, 0.5, 1.5), (1.0, 0.0, 0.0), (0.0, 0.3, 2.0)][case % 4]
        min_iou, nms, limit = [0.3, 0.1][case % 2], [0.5, 1.0, 0.2][case % 3], [0, 0, 2][case // 7 % 3]
        frames = random_video(rng, int(rng.integers(1, 6)), 4)
        tracker = SeqTracker(
            **{"min_iou": min_iou, "nms_thresh": nms, "max_tracks": limit},
            **dict(zip(("iou_weight", "class_weight", "link_cost"), weights, strict=True)),
        )
        expected = reference(frames, min_iou, weights, nms, limit)
        assert link(tracker, *frames) == expected, case
        flat = [i for ids in expected for i in ids]
        long += any(flat.count(i) > 2 for i in set(flat) - {-1})
        suppressed += limit == 0 and -1 in flat
        classes: dict[int, set[int]] = {}
        for ids, instances in zip(expected, frames, strict=True):
            for i, label in zip(ids, instances.pred_classes.tolist(), strict=True):
                classes.setdefault(i, set()).add(label)
        flips += any(len(c) > 1 for i, c in classes.items() if i >= 0)
        later += any(0 in ids for ids in expected[1:]) and 0 not in expected[0]
    assert min(long, suppressed, flips, later) > 5  # the cases are not all easy


def all_at_once(scores: list[np.ndarray], gains: list[np.ndarray], overlaps: list[np.ndarray]) -> list[np.ndarray]:
    """The same dynamic programming, all of it again after every path."""
    scores, ids = [x.copy() for x in scores], [np.full(len(x), -1) for x in scores]
    for count in range(10**6):
        best, before = [], []
        for t, s in enumerate(scores):
            arrival = np.zeros(len(s))
            source = np.full(len(s), -1)
            for n in range(len(s)):
                for m in range(len(scores[t - 1]) if t else 0):
                    if best[t - 1][m] + gains[t - 1][m, n] > arrival[n]:
                        arrival[n], source[n] = best[t - 1][m] + gains[t - 1][m, n], m
            best.append(s + arrival)
            before.append(source)
        tops = [b.max(initial=-np.inf) for b in best]
        if max(tops) == -np.inf:
            return ids
        t = int(np.argmax(tops))
        n = int(best[t].argmax())
        while n >= 0:
            ids[t][n] = count
            scores[t][overlaps[t][n] | (np.arange(len(scores[t])) == n)] = -np.inf
            t, n = t - 1, int(before[t][n])
    raise AssertionError("no end")


def test_computing_only_what_changed_is_the_same() -> None:
    """Long videos with ties: scores and gains are multiples of 1/4."""
    rng = np.random.default_rng(1)
    for case in range(6):
        counts = rng.integers(0, 6, 40)
        scores = [rng.integers(1, 5, n) / 4 for n in counts]
        gains = [np.where(rng.random((n, m)) < 0.4, rng.integers(-2, 3, (n, m)) / 4, -np.inf) for n, m in pairwise(counts)]
        overlaps = [rng.random((n, n)) < 0.1 * case for n in counts]
        for a, b in zip(best_paths(scores, gains, overlaps), all_at_once(scores, gains, overlaps), strict=True):
            assert a.tolist() == b.tolist()


def test_a_long_video_is_quick() -> None:
    """Some 10,000 paths in 3,000 frames: a second or two. All the work again after every path would be an hour."""
    rng = np.random.default_rng(2)
    scores = [rng.uniform(0.1, 1, 10) for _ in range(3000)]
    gains = [np.where(rng.random((10, 10)) < 0.1, rng.uniform(0, 2, (10, 10)), -np.inf) for _ in range(2999)]
    overlaps = [np.eye(10, dtype=bool)] * 3000
    start = time.perf_counter()
    ids = best_paths(scores, gains, overlaps)
    assert time.perf_counter() - start < 20
    assert sum((i >= 0).sum() for i in ids) == 30000


# ---- by hand


def test_threshold_and_cost() -> None:
    """Bars of 10 inclusive pixels at a distance of 5: IoU 1/3."""
    assert link(SeqTracker(), bars(0), bars(5)) == [[0], [0]]
    assert link(SeqTracker(min_iou=0.34), bars(0), bars(5)) == [[0], [1]]
    assert link(SeqTracker(min_iou=1 / 3), bars(0), bars(5, 0)) == [[0], [1, 0]]
    assert link(SeqTracker(link_cost=12.0), bars(0), bars(5)) == [[0], [1]], "0.9 + 2/3 + 10 - 12 < 0: better alone"
    assert link(SeqTracker(link_cost=11.0), bars(0), bars(5)) == [[0], [0]]


def test_the_whole_video_decides() -> None:
    """A weak detection between strong ones joins them; an online tracker would have given its place to the stronger neighbour."""
    frames = [bars(0, scores=[0.9]), bars(4, 0, scores=[0.9, 0.2]), bars(0, scores=[0.9]), bars(0, scores=[0.9])]
    assert link(SeqTracker(nms_thresh=1.0), *frames) == [[0], [1, 0], [0], [0]]


def test_order_of_discovery_and_of_equals() -> None:
    apart = [bars(0, 20, scores=[0.5, 0.4]), bars(20, scores=[0.9])]
    assert link(SeqTracker(), *apart) == [[1, 0], [0]], "the better path first"
    assert link(SeqTracker(), bars(0, 20), bars(0, 20)) == [[0, 1], [0, 1]]


def test_classes() -> None:
    flip = [bars(0), bars(0, classes=[1])]
    assert link(SeqTracker(), *flip) == [[0], [1]], "another class costs 10"
    assert link(SeqTracker(), bars(0), *[bars(0, classes=[1])] * 4)[1:] == [[0]] * 4
    assert link(SeqTracker(class_weight=0.0, link_cost=0.0), *flip) == [[0], [0]]


def test_overlapping_detections_go_with_a_path() -> None:
    frames = [bars(0, 2, 20, scores=[0.9, 0.8, 0.7])]
    assert link(SeqTracker(), *frames) == [[0, -1, 1]]
    assert link(SeqTracker(nms_thresh=1.0), *frames) == [[0, 1, 2]]
    assert link(SeqTracker(max_tracks=1), *frames) == [[0, -1, -1]]


def test_gaps_end_a_path() -> None:
    assert link(SeqTracker(), bars(0), bars(), bars(0)) == [[0], [], [1]]
    assert link(SeqTracker()) == []
    assert link(SeqTracker(), bars(), bars()) == [[], []]


def test_frames_of_another_size_show_the_same_view() -> None:
    double = frame([(40, 0, 60, 8), (0, 0, 20, 8)], size=(48, 80))
    assert link(SeqTracker(), bars(0, 20), double, bars(20, 0)) == [[1, 0], [0, 1], [0, 1]]


# ---- what offline trackers share


def test_the_kept_detections_are_returned() -> None:
    tracker = SeqTracker(score_thresh=0.3, max_per_frame=2, class_ids=[0], pre_nms_thresh=0.5)
    instances = bars(0, 1, 20, 30, 10, scores=[0.5, 0.9, 0.2, 0.6, 0.7], classes=[0, 0, 0, 0, 1])
    kept = tracker.add(instances)
    assert kept.scores.tolist() == pytest.approx([0.9, 0.6]) and not kept.has("ID") and not instances.has("ID")
    assert [ids.tolist() for ids in tracker.link()] == [[0, 1]]
    tracker.reset()
    assert tracker.link() == []


def test_no_masks_are_kept() -> None:
    tracker = SeqTracker()
    for _ in range(3):
        tracker.add(bars(0, 20))
    held = [x for frames in (tracker._boxes, tracker._scores, tracker._classes) for x in frames]
    assert sum(x.nbytes for x in held) <= 3 * 2 * (4 + 2) * 8


def test_offline_trackers_do_not_stream() -> None:
    with pytest.raises(ConfigError, match=r"SeqTracker is an offline tracker.*IoUTrackerPlus"):
        SeqTracker().update(bars(0))


def test_built_from_config() -> None:
    keys = {"SEQ.MIN_IOU": 0.4, "SEQ.IOU": 3.0, "SEQ.CLASS": 4.0, "SEQ.COST": 5.0, "SEQ.NMS": 0.6, "SEQ.MAX_TRACKS": 7, "SCORE_THRESH": 0.2}
    words = [word for key, value in keys.items() for word in (f"TRACKER_HEADS.{key}", str(value))]
    cfg = load_config("", [*words, "TRACKER_HEADS.TRACKER_NAME", "SeqTracker"])
    arguments = SeqTracker.from_config(cfg)
    names = ("min_iou", "iou_weight", "class_weight", "link_cost", "nms_thresh", "max_tracks", "score_thresh")
    assert [arguments[name] for name in names] == list(keys.values())
    assert isinstance(build_tracker_head(cfg), OfflineTracker)
