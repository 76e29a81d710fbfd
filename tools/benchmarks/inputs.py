"""Made inputs: masks, detections, tubes and frames from random numbers."""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from solotrack.ops.masks import masks_to_boxes
from solotrack.ops.rle import encode_masks

__all__ = ["random_detections", "random_masks", "random_truth", "random_tubes", "write_random_frames"]


def random_masks(rng: np.random.Generator, n: int, size: tuple[int, int], steps: int = 1) -> np.ndarray:
    """(steps, n, H, W) bool: n ellipses that drift; radii from 2 to 25 % of the shorter side."""
    height, width = size
    side = np.array([width, height], dtype=np.float32)
    centers = rng.uniform(0.1, 0.9, (n, 2)) * side + rng.normal(0, 0.01, (n, 2)) * side * np.arange(steps)[:, None, None]  # (steps, n, 2)
    radii = np.exp(rng.uniform(np.log(0.02), np.log(0.25), (n, 2))) * min(size) + 1
    centers = centers.clip(0, side - 1)[..., None]
    x, y = (np.arange(length) for length in (width, height))
    dx = ((x - centers[:, :, 0]) / radii[:, :1]) ** 2  # (steps, n, W)
    dy = ((y - centers[:, :, 1]) / radii[:, 1:]) ** 2
    return dx[:, :, None] + dy[..., None] <= 1


def random_truth(rng: np.random.Generator, n: int, size: tuple[int, int], num_classes: int) -> Instances:
    """n ground truths of an image, as the mapper gives them."""
    masks = torch.from_numpy(random_masks(rng, n, size)[0])
    result = Instances(size)
    result.gt_masks, result.gt_boxes = BitMasks(masks), Boxes(masks_to_boxes(masks))
    result.gt_classes = torch.from_numpy(rng.integers(num_classes, size=n))
    result.gt_ids = torch.arange(n)
    return result


def random_detections(
    rng: np.random.Generator, n: int, size: tuple[int, int], frames: int, dim: int, device: torch.device
) -> list[Instances]:
    """n detections in each frame of a video; an object keeps its class and, but for noise, its embedding."""
    classes, own = torch.from_numpy(rng.integers(20, size=n)), rng.normal(size=(n, dim))
    video = []
    for masks in random_masks(rng, n, size, frames):
        instances = Instances(size)
        instances.pred_masks = torch.from_numpy(masks)
        instances.pred_boxes = Boxes(masks_to_boxes(instances.pred_masks))
        instances.scores = torch.from_numpy(np.sort(rng.uniform(0.3, 1, n))[::-1].astype(np.float32))
        instances.pred_classes = classes
        instances.embeddings = torch.from_numpy((own + rng.normal(0, 0.3, (n, dim))).astype(np.float32))
        video.append(instances.to(device))
    return video


def random_tubes(rng: np.random.Generator, args: argparse.Namespace) -> tuple[dict, list[dict]]:
    """Annotations and predictions in YouTube-VIS' format: every other prediction follows a true object, the others are anywhere."""
    size = tuple(args.size)
    pool = [encode_masks(tube) for tube in random_masks(rng, 40, size, args.frames).swapaxes(0, 1)]
    video_ids = range(1, args.videos + 1)
    truth = {
        "videos": [
            {"id": i, "height": size[0], "width": size[1], "file_names": [f"{t}.jpg" for t in range(args.frames)]} for i in video_ids
        ],
        "categories": [{"id": i, "name": f"category {i}"} for i in range(1, 21)],
        "annotations": [],
    }
    predictions = []
    for video in video_ids:
        tubes, labels = rng.integers(len(pool), size=args.objects), rng.integers(1, 21, size=args.objects)
        for tube, label in zip(tubes.tolist(), labels.tolist(), strict=True):
            number = len(truth["annotations"]) + 1
            areas = [1000] * args.frames
            truth["annotations"].append(
                {"id": number, "video_id": video, "category_id": label, "iscrowd": 0, "segmentations": pool[tube], "areas": areas}
            )
        for number in range(args.tracks):
            like = number // 2 % max(args.objects, 1)
            tube = int(tubes[like]) if number % 2 == 0 and args.objects else int(rng.integers(len(pool)))
            label = int(labels[like]) if number % 2 == 0 and args.objects else int(rng.integers(1, 21))
            predictions.append({"video_id": video, "category_id": label, "score": float(rng.random()), "segmentations": pool[tube]})
    return truth, predictions


def write_random_frames(rng: np.random.Generator, folder: str, size: tuple[int, int], count: int) -> None:
    """JPEG files of smooth noise."""
    for index in range(count):
        small = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
        cv2.imwrite(f"{folder}/{index:05d}.jpg", cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))
