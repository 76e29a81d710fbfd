"""The detection score at which a detector's boxes are right and complete in balance."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from solotrack.evaluation.ytvis_format import YTVISFormatError

__all__ = ["OperatingPoint", "best_operating_point"]

_MAX_DETECTIONS = 1000  # an image


@dataclass(frozen=True)
class OperatingPoint:
    """What detections of at least ``score`` are worth; shares are fractions."""

    score: float
    f1: float
    precision: float
    recall: float
    objects: int


def best_operating_point(annotations: dict[str, Any], detections: list[dict[str, Any]], iou: float = 0.5) -> OperatingPoint:
    """The score threshold of the largest F1 of boxes on labelled images.

    Detections are matched with objects of their category as COCO's evaluation does, best score first; what lies on crowds does not count.

    Args:
        annotations: a COCO json's content; it is not changed.
        detections: COCO results with ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score``.
        iou: of a right detection, at least.

    Raises:
        YTVISFormatError: there is no detection, or no object, or these are not COCO's formats.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
            truth = COCO()
            # ids from 1 on: COCOeval keeps those of matches in floats, where 0 means none
            objects = [{"iscrowd": 0, "area": 0, **x, "id": number} for number, x in enumerate(annotations["annotations"], start=1)]
            truth.dataset = {**annotations, "annotations": objects}
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes([{**x} for x in detections]), "bbox")
            evaluation.params.iouThrs = np.array([iou])
            evaluation.params.maxDets = [_MAX_DETECTIONS]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.evaluate()
    except (KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
        raise YTVISFormatError(f"needs a COCO json of images and a list of detections in COCO's result format: {error!r}") from None
    images = [image for image in evaluation.evalImgs if image is not None]
    scores, matched, ignored = (
        np.concatenate([np.asarray(image[key]).reshape(-1) for image in images]) for key in ("dtScores", "dtMatches", "dtIgnore")
    )
    objects = int(sum((1 - np.asarray(image["gtIgnore"])).sum() for image in images))
    counted = ~ignored.astype(bool)
    if not objects or not counted.any():
        raise YTVISFormatError(f"no threshold can be chosen: {objects} objects and {int(counted.sum())} detections")
    order = np.argsort(-scores[counted], kind="stable")
    scores, right = scores[counted][order], np.cumsum(matched[counted][order] > 0)
    given = np.arange(1, len(right) + 1)
    f1 = 2 * right / (given + objects)
    last = np.append(scores[1:] < scores[:-1], True)  # of detections with one score all are taken or none
    best = int(np.where(last, f1, -1).argmax())
    return OperatingPoint(float(scores[best]), float(f1[best]), float(right[best] / given[best]), float(right[best] / objects), objects)
