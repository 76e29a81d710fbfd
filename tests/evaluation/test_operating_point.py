from __future__ import annotations

import copy

import numpy as np
import pytest

from solotrack.evaluation.operating_point import best_operating_point
from solotrack.evaluation.ytvis_format import YTVISFormatError

SIDE = 10  # pixels


def annotations(objects: list[tuple[int, int]], crowd: int | None = None) -> dict:
    """Squares at (image, place)."""
    return {
        "images": [{"id": i, "height": 20, "width": 200} for i in (1, 2)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "bbox": [20 * x, 0, SIDE, SIDE], "area": SIDE**2, "iscrowd": int(n == crowd)}
            for n, (i, x) in enumerate(objects, start=1)
        ],
    }


def detection(image: int, place: float, score: float) -> dict:
    return {"image_id": image, "category_id": 1, "bbox": [20 * place, 0, SIDE, SIDE], "score": score}


def slow_best(right: list[bool], scores: list[float], objects: int) -> tuple[float, float]:
    """F1 and score by trying every threshold."""
    best = (-1.0, 0.0)
    for threshold in sorted(set(scores), reverse=True):
        taken = [r for r, s in zip(right, scores, strict=True) if s >= threshold]
        best = max(best, (2 * sum(taken) / (len(taken) + objects), threshold))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_every_threshold_tried(seed: int) -> None:
    rng = np.random.default_rng(seed)
    objects = [(i, x) for i in (1, 2) for x in range(8)]
    found = [(i, x, round(float(rng.random()), 1)) for i, x in objects if rng.random() < 0.8]
    wrong = [(1, 9.5, round(float(rng.random()) * 0.7, 1)) for _ in range(7)]
    point = best_operating_point(annotations(objects), [detection(*d) for d in found + wrong])
    f1, score = slow_best([True] * len(found) + [False] * len(wrong), [d[2] for d in found + wrong], len(objects))
    assert (point.f1, point.score, point.objects) == (pytest.approx(f1), score, len(objects))
    assert point.f1 == pytest.approx(2 * point.precision * point.recall / (point.precision + point.recall))


def test_duplicates_are_wrong_and_crowds_do_not_count() -> None:
    truth = annotations([(1, 0), (1, 2), (2, 5)], crowd=3)
    sure = [detection(1, 0, 0.9), detection(1, 2, 0.8)]
    point = best_operating_point(truth, [*sure, detection(1, 0.1, 0.7), detection(2, 5, 0.85)])
    assert (point.score, point.f1, point.objects) == (0.8, 1, 2)
    assert best_operating_point(truth, [detection(1, 0, 0.9), detection(1, 0.1, 0.9)]).precision == 0.5


def test_a_right_detection_covers_half() -> None:
    """6 of 14 columns are shared."""
    truth, found = annotations([(1, 0)]), [detection(1, 0.2, 0.9)]
    assert [best_operating_point(truth, found, **options).f1 for options in ({}, {"iou": 0.44}, {"iou": 0.42})] == [0, 0, 1]


@pytest.mark.parametrize("first", [0, "a"])
def test_any_ids_and_only_what_is_needed(first: int | str) -> None:
    """As the training data may have them."""
    truth = annotations([(1, 0), (1, 2)])
    for n, x in enumerate(truth["annotations"]):
        x["id"] = first * (n + 1) if isinstance(first, str) else first + n
        del x["area"], x["iscrowd"]
    before = copy.deepcopy(truth)
    assert best_operating_point(truth, [detection(1, 0, 0.9), detection(1, 2, 0.8)]).f1 == 1
    assert truth == before


@pytest.mark.parametrize(
    ("truth", "detections", "message"),
    [
        (annotations([(1, 0)]), [], "COCO"),
        (annotations([]), [detection(1, 0, 0.5)], "no threshold can be chosen: 0 objects and 1 detections"),
        ({"videos": []}, [detection(1, 0, 0.5)], "needs a COCO json"),
        (annotations([(1, 0)]), [{"video_id": 1, "segmentations": []}], "needs a COCO json"),
        (annotations([(1, 0)]), {"images": []}, "needs a COCO json"),
    ],
)
def test_what_is_no_ground_for_a_threshold(truth: dict, detections: list, message: str) -> None:
    with pytest.raises(YTVISFormatError, match=message):
        best_operating_point(truth, detections)
