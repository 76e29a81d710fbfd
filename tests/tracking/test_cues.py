"""MaskTrack R-CNN's post-processing against a literal, slow loop of METHOD 5.4."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from solotrack.tracking import EmbeddingTracker
from solotrack.tracking.assignment import DROPPED, NEW
from solotrack.tracking.cues import assign_masktrack, cue_scores

SIZE = (20, 24)


class LiteralMaskTrack:
    """One detection after the other, lists that grow, a result dictionary keyed by ID."""

    def __init__(self, null_logit: float, coefficients: tuple[float, float, float], iou_type: str) -> None:
        self.null_logit, self.coefficients, self.iou_type = null_logit, coefficients, iou_type
        self.features: list | None = None

    def overlap(self, box_a: list, box_b: list, mask_a: np.ndarray, mask_b: np.ndarray) -> float:
        if self.iou_type == "mask":
            union = (mask_a | mask_b).sum()
            return (mask_a & mask_b).sum() / union if union else 0.0
        w = min(box_a[2], box_b[2]) - max(box_a[0], box_b[0]) + 1
        h = min(box_a[3], box_b[3]) - max(box_a[1], box_b[1]) + 1
        inter = max(w, 0) * max(h, 0)
        area_a = (box_a[2] - box_a[0] + 1) * (box_a[3] - box_a[1] + 1)
        area_b = (box_b[2] - box_b[0] + 1) * (box_b[3] - box_b[1] + 1)
        return inter / (area_a + area_b - inter)

    def update(self, detections: Instances) -> list[int]:
        features = detections.embeddings.double().tolist()
        boxes = detections.pred_boxes.tensor.tolist()
        masks = list(detections.pred_masks.numpy())
        labels, scores = detections.pred_classes.tolist(), detections.scores.tolist()
        if not features:
            return []
        if self.features is None:
            self.features, self.boxes, self.masks, self.labels = features, boxes, masks, labels
            return list(range(len(features)))
        by_score, by_iou, by_class = self.coefficients
        comp = []
        for f, box, mask, label, score in zip(features, boxes, masks, labels, scores, strict=True):
            logits = [self.null_logit] + [sum(a * b for a, b in zip(f, g, strict=True)) for g in self.features]
            top = max(logits)
            norm = top + math.log(sum(math.exp(x - top) for x in logits))
            row = [logits[0] - norm + by_score * math.log(score) + by_class]
            for logit, other_box, other_mask, other_label in zip(logits[1:], self.boxes, self.masks, self.labels, strict=True):
                iou = self.overlap(box, other_box, mask, other_mask)
                row.append(logit - norm + by_score * math.log(score) + by_iou * iou + by_class * (label == other_label))
            comp.append(row)
        best = [-100.0] * len(self.features)
        result: dict[int, int] = {}
        for n, row in enumerate(comp):
            choice = row.index(max(row))
            if choice == 0:
                result[len(self.features)] = n
                self.features.append(features[n])
                self.boxes.append(boxes[n])
                self.masks.append(masks[n])
                self.labels.append(labels[n])
            elif row[choice] > best[choice - 1]:
                best[choice - 1] = row[choice]
                result[choice - 1] = n
                self.features[choice - 1] = features[n]
                self.boxes[choice - 1] = boxes[n]
                self.masks[choice - 1] = masks[n]
        ids = [-1] * len(features)
        for track, n in result.items():
            ids[n] = track
        return ids


def random_frame(rng: np.random.Generator, objects: np.ndarray, n: int) -> Instances:
    """n noisy detections of some of the objects (their appearance, class and place), several of one now and then."""
    which = rng.integers(0, len(objects), n)
    instances = Instances(SIZE)
    corner = np.clip(objects[which, 5:7] + rng.integers(-3, 4, (n, 2)), 0, 12)
    boxes = np.concatenate((corner, corner + rng.integers(2, 8, (n, 2))), axis=1)
    masks = np.zeros((n, *SIZE), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_boxes = Boxes(torch.from_numpy(boxes).float())
    instances.scores = torch.from_numpy(np.sort(rng.uniform(0.05, 1, n))[::-1].copy()).float()
    flipped = rng.random(n) < 0.15
    instances.pred_classes = torch.from_numpy(np.where(flipped, rng.integers(0, 3, n), objects[which, 4].astype(int))).long()
    instances.embeddings = torch.from_numpy(objects[which, :4] + rng.normal(scale=0.4, size=(n, 4))).float()
    return instances


@pytest.mark.parametrize("iou_type", ["box", "mask"])
def test_200_random_videos(iou_type: str) -> None:
    rng = np.random.default_rng(4 if iou_type == "box" else 5)
    coefficients = [(1.0, 2.0, 10.0), (0.5, 4.0, 1.0), (1.0, 2.0, 0.0)]
    dropped = replaced = new = 0
    for case in range(100):  # for each type
        objects = np.concatenate((rng.normal(scale=1.5, size=(4, 4)), rng.integers(0, 3, (4, 1)), rng.integers(0, 14, (4, 2))), axis=1)
        null_logit, weights = float(rng.normal()), coefficients[case % 3]
        reference = LiteralMaskTrack(null_logit, weights, iou_type)
        tracker = EmbeddingTracker(
            null_logit=null_logit,
            cues=True,
            cue_score=weights[0],
            cue_iou=weights[1],
            cue_class=weights[2],
            cue_iou_type=iou_type,
            proto_update="last",
            score_thresh=0.0,
        )
        for _ in range(6):
            detections = random_frame(rng, objects, int(rng.integers(0, 7)))
            known = 0 if reference.features is None else len(reference.features)
            expected = reference.update(detections)
            assert tracker.update(detections).ID.tolist() == expected
            dropped += expected.count(-1)
            new += sum(i >= known > 0 for i in expected)
            replaced += any(a == -1 and b >= 0 for a, b in itertools.pairwise(expected))
    assert min(dropped, replaced, new) > 20  # the cases are not all easy


def test_formula() -> None:
    log_prob = torch.tensor([[-1.0, -2.0, -0.5]])
    values = cue_scores(log_prob, torch.tensor([0.5]), torch.tensor([[0.25, 0.75]]), torch.tensor([[True, False]]))
    log_s = math.log(0.5)
    assert values[0].tolist() == pytest.approx([-1 + log_s + 10, -2 + log_s + 0.5 + 10, -0.5 + log_s + 1.5])


def test_a_score_of_zero_stays_finite() -> None:
    values = cue_scores(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert values.isfinite().all()


def test_rules() -> None:
    values = np.array([[3.0, 2.9], [4.0, 0.0], [1.0, 1.0], [4.0, 0.0]])
    # The second takes the first's track, the third's null wins the tie, the fourth comes too late with an equal value;
    # the first has no second choice.
    assert assign_masktrack(values, np.array([0.0, 0.0, 1.0, 0.0])).tolist() == [DROPPED, 0, NEW, DROPPED]
    assert assign_masktrack(values, np.array([0.0, 0.0, 1.0, 0.0]), loser="new").tolist() == [NEW, 0, NEW, NEW]


def two_frames(tracker: EmbeddingTracker, label: int, at: int = 0, looks: tuple[float, float] = (1.0, 0.0)) -> list[int]:
    """A track of class 0 at x = 0, then one detection of class ``label`` at x = ``at``."""
    ids = []
    for x, cls, embedding in ((0, 0, (1.0, 0.0)), (at, label, looks)):
        masks = torch.zeros(1, *SIZE, dtype=torch.bool)
        masks[0, :4, x : x + 4] = True
        frame = Instances(SIZE)
        frame.pred_masks = masks
        frame.pred_boxes = Boxes(torch.tensor([[x, 0.0, x + 4, 4]]))
        frame.scores = torch.tensor([0.9])
        frame.pred_classes = torch.tensor([cls])
        frame.embeddings = torch.tensor([embedding])
        ids += tracker.update(frame).ID.tolist()
    return ids


def test_a_class_flip_is_a_new_track() -> None:
    assert two_frames(EmbeddingTracker(cues=True), label=0) == [0, 0]
    assert two_frames(EmbeddingTracker(cues=True), label=1) == [0, 1]
    assert two_frames(EmbeddingTracker(cues=False), label=1) == [0, 0]
    assert two_frames(EmbeddingTracker(cues=True, cue_class=0.0), label=1) == [0, 0]


def test_overlap_decides_where_looks_do_not() -> None:
    tracker = {"cues": True, "null_logit": 2.0}  # log p of the track is 1 below that of the null
    assert two_frames(EmbeddingTracker(**tracker), label=0) == [0, 0]  # + 2 · IoU 1
    assert two_frames(EmbeddingTracker(**tracker), label=0, at=10) == [0, 1]


@pytest.mark.parametrize("sim", ["softmax", "bisoftmax", "masa"])
def test_other_similarities_have_cues_too(sim: str) -> None:
    assert two_frames(EmbeddingTracker(sim=sim, cues=True), label=0) == [0, 0]
    assert two_frames(EmbeddingTracker(sim=sim, cues=True), label=1) == [0, 1]


def test_other_similarities_count_by_their_logarithm() -> None:
    """Cosine 0.3 where 0.9 is needed: the logarithms differ by 1.10. Boxes shifted by 1 and 2 pixels add 2 · 20/30 and 2 · 15/35."""
    tracker = {"sim": "softmax", "cos_min": 0.9, "cues": True}
    assert two_frames(EmbeddingTracker(**tracker), label=0, at=1, looks=(0.3, 0.954)) == [0, 0]
    assert two_frames(EmbeddingTracker(**tracker), label=0, at=2, looks=(0.3, 0.954)) == [0, 1]


def test_hungarian_on_the_cues() -> None:
    assert two_frames(EmbeddingTracker(cues=True, assignment="hungarian"), label=0) == [0, 0]
    assert two_frames(EmbeddingTracker(cues=True, assignment="hungarian"), label=1) == [0, 1]
