"""The filter in front of every tracker, and what trackers share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.tracking.base_tracker import TRACKER_HEADS_REGISTRY, build_tracker_head

from solotrack.config import load_config
from solotrack.tracking import DistanceTracker, EmbeddingTracker, IoUTracker, IoUTrackerPlus, build_tracker, select_instances

TRACKERS = [EmbeddingTracker, DistanceTracker, IoUTracker, IoUTrackerPlus]


def random_instances(n: int, size: tuple[int, int] = (24, 32), seed: int = 0) -> Instances:
    """n rectangles; in no particular order of score."""
    generator = torch.Generator().manual_seed(seed)
    h, w = size
    corner = torch.rand(n, 2, generator=generator) * torch.tensor([w - 8.0, h - 8.0])
    boxes = torch.cat((corner, corner + 2 + torch.rand(n, 2, generator=generator) * 6), dim=1).round()
    ys, xs = torch.arange(h)[:, None], torch.arange(w)[None]
    x1, y1, x2, y2 = boxes[:, :, None, None].unbind(1)
    instances = Instances(size)
    instances.pred_masks = (xs >= x1) & (xs < x2) & (ys >= y1) & (ys < y2)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.rand(n, generator=generator)
    instances.pred_classes = torch.randint(0, 3, (n,), generator=generator)
    instances.embeddings = torch.randn(n, 8, generator=generator)
    instances.cell_indices = torch.arange(n)
    return instances


def filter_reference(instances: Instances, score_thresh: float, top: int, class_ids: list[int] | None, nms: float) -> list[int]:
    scores, masks = instances.scores.numpy(), instances.pred_masks.numpy()
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept: list[int] = []
    for i in order:
        if scores[i] < score_thresh or (class_ids is not None and int(instances.pred_classes[i]) not in class_ids):
            continue
        overlaps = [(masks[i] & masks[j]).sum() / max(1, (masks[i] | masks[j]).sum()) for j in kept]
        if nms == 1 or not any(o > nms for o in overlaps):
            kept.append(i)
    return kept[:top]


def test_filter_equals_reference() -> None:
    for seed in range(30):
        instances = random_instances(25, seed=seed)
        if seed % 3 == 0:
            instances.scores = instances.scores.mul(4).round().div(4)  # ties
        class_ids = [None, [0, 2], []][seed % 3]
        nms = [1.0, 0.2, 0.5][seed % 3]
        kept, scores = select_instances(instances, 0.25, 9, class_ids, nms)
        assert kept.cell_indices.tolist() == filter_reference(instances, 0.25, 9, class_ids, nms)
        assert np.array_equal(scores, kept.scores.numpy())


def test_nms_does_not_spend_the_places() -> None:
    instances = random_instances(1, seed=1)
    double = Instances.cat([instances, instances, random_instances(1, seed=2)])
    double.scores = torch.tensor([0.9, 0.8, 0.7])
    double.cell_indices = torch.arange(3)
    assert select_instances(double, max_per_frame=2)[0].cell_indices.tolist() == [0, 1]
    assert select_instances(double, max_per_frame=2, nms_thresh=0.9)[0].cell_indices.tolist() == [0, 2]


def test_a_suppressed_mask_suppresses_nothing() -> None:
    instances = random_instances(3)
    masks = torch.zeros(3, 24, 32, dtype=torch.bool)
    for mask, start in zip(masks, (0, 4, 8), strict=True):  # IoU of neighbours 6/14, of the ends 2/18
        mask[:, start : start + 10] = True
    instances.pred_masks = masks
    instances.scores = torch.tensor([0.9, 0.8, 0.7])
    assert select_instances(instances, nms_thresh=0.4)[0].cell_indices.tolist() == [0, 2]


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_ids_of_any_sequence(tracker_class: type) -> None:
    """Whatever the frames: IDs are int64, unique in a frame, dense in the video; frames may be empty and change their size."""
    tracker = tracker_class(score_thresh=0.1, max_per_frame=12)
    seen: set[int] = set()
    sizes = [(24, 32), (24, 32), (48, 40), (24, 32)]
    counts = [0, 5, 30, 0, 1, 12, 0, 0, 7]
    for frame, count in enumerate(counts):
        instances = random_instances(count, sizes[frame % 4], seed=frame)
        before = dict(instances.get_fields())
        out = tracker.update(instances)
        assert out.ID.dtype == torch.int64
        assert out.ID.shape == (len(out),)
        assert len(out) <= 12
        assert out.image_size == instances.image_size
        assert (out.scores >= 0.1).all()
        assert out.scores.tolist() == sorted(out.scores.tolist(), reverse=True)
        ids = [i for i in out.ID.tolist() if i >= 0]
        assert len(set(ids)) == len(ids)
        new = sorted(set(ids) - seen)
        assert new == list(range(len(seen), len(seen) + len(new)))
        seen |= set(ids)
        assert instances.get_fields() == before  # the same objects: the input has no ID field and lost nothing
    assert seen


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_one_frame_and_reset(tracker_class: type) -> None:
    tracker = tracker_class(score_thresh=0.0, max_per_frame=100)
    instances = random_instances(6)
    assert tracker.update(instances).ID.tolist() == list(range(6))
    tracker.reset()
    assert tracker.update(instances).ID.tolist() == list(range(6))
    if tracker_class is not EmbeddingTracker:
        assert sorted(tracker.update(instances).ID.tolist()) == list(range(6))


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_500_detections(tracker_class: type) -> None:
    tracker = tracker_class(score_thresh=0.0, max_per_frame=500)
    first = tracker.update(random_instances(500, (64, 96), seed=0))
    assert first.ID.tolist() == list(range(500))
    second = tracker.update(random_instances(500, (64, 96), seed=1))
    ids = second.ID[second.ID >= 0].tolist()
    assert len(set(ids)) == len(ids)
    assert any(i < 500 for i in ids)


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_init_score_holds_in_every_frame(tracker_class: type) -> None:
    tracker = tracker_class(score_thresh=0.0, max_per_frame=100, init_score=0.5)
    for seed in range(3):
        tracker.reset()
        out = tracker.update(random_instances(10, seed=seed))
        assert torch.equal(out.ID >= 0, out.scores >= 0.5)
        assert out.ID[out.ID >= 0].tolist() == list(range(int((out.scores >= 0.5).sum())))
    known = int((out.ID >= 0).sum())
    weak = random_instances(10, seed=9)
    weak.scores = weak.scores * 0.4
    assert (known > tracker.update(weak).ID).all()


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_gradients_and_inference_mode(tracker_class: type) -> None:
    tracker = tracker_class(score_thresh=0.0)
    for seed in range(4):
        instances = random_instances(5, seed=seed)
        instances.embeddings.requires_grad_()
        with torch.inference_mode(seed % 2 == 0):
            out = tracker.update(instances)
        assert len(out) == 5


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_built_from_config(tracker_class: type) -> None:
    name = tracker_class.__name__
    cfg = load_config("", ["TRACKER_HEADS.TRACKER_NAME", name, "TRACKER_HEADS.SCORE_THRESH", "0.3", "TRACKER_HEADS.MAX_PER_FRAME", "4"])
    assert TRACKER_HEADS_REGISTRY.get(name) is tracker_class
    assert isinstance(build_tracker_head(cfg), tracker_class)
    instances = random_instances(30)
    out = build_tracker(cfg, class_ids=[0, 2]).update(instances)
    assert out.cell_indices.tolist() == filter_reference(instances, 0.3, 4, [0, 2], 1.0)


def test_retain_of_each_tracker_comes_from_its_own_key() -> None:
    overrides = ["TRACKER_HEADS.RETAIN", "7", "TRACKER_HEADS.DISTANCE.RETAIN", "3", "TRACKER_HEADS.IOU.RETAIN", "4"]
    cfg = load_config("", overrides)
    assert [tracker.from_config(cfg)["retain"] for tracker in TRACKERS] == [7, 3, 4, 7]


def test_unknown_choice() -> None:
    with pytest.raises(ValueError, match="'greedy', 'hungarian'"):
        IoUTracker(assignment="optimal")
    with pytest.raises(ValueError, match="'mask', 'box'"):
        IoUTracker(iou_type="oks")
    with pytest.raises(ValueError, match="'softmax_null'"):
        EmbeddingTracker(sim="sigmoid")
