"""A small labelled image: what it shows, its annotations, and a mapper that changes nothing."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from solotrack.config import load_config
from solotrack.data.mappers import ImageMapper

H, W = 60, 80


def disc(x: int, y: int, radius: int) -> np.ndarray:
    return cv2.circle(np.zeros((H, W), np.uint8), (x, y), radius, 1, -1)


def encode(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def annotation(segmentation: Any, category: int, crowd: int = 0) -> dict[str, Any]:
    return {"iscrowd": crowd, "bbox": [0, 0, 1, 1], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "segmentation": segmentation}


MASKS = {0: disc(20, 20, 8), 2: disc(27, 23, 7), 4: disc(60, 40, 9)}  # by place among the annotations; the first two overlap


def plain(*overrides: str) -> ImageMapper:
    """A mapper that changes nothing but what the overrides say."""
    return ImageMapper(load_config("", ["INPUT.MIN_SIZE_TRAIN", f"({H},)", "INPUT.RANDOM_FLIP", "none", *overrides]))


def boxes_by_hand(masks: torch.Tensor) -> list[list[float]]:
    boxes = []
    for mask in masks.numpy():
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return boxes
