"""Draw tracked instances on a frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.structures import Instances

from ..ops.masks import masks_to_boxes
from .colors import identity_color

__all__ = ["draw_tracks", "readable_zoom"]


def draw_tracks(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str] | None = None,
    alpha: float = 0.45,
    labels: bool = True,
    zoom: int = 1,
) -> np.ndarray:
    """The frame with its tracks drawn on it; an identity has the same colour in every frame.

    Args:
        image: (H, W, 3) uint8 RGB; left as it is.
        instances: ``pred_masks`` (n, H, W) bool, ``ID`` (n,), ``pred_classes`` (n,) and ``scores`` (n,); detections without a track
            (ID -1) are left out.
        class_names: name of each class; None writes its number. That of the only class is not written.
        alpha: weight of the colour inside a mask, 0 to 1.
        labels: write "#identity class score" at each instance.
        zoom: pixels that stand for one, in both directions, so that labels leave room to see small frames (:func:`readable_zoom`).

    Returns:
        (zoom * H, zoom * W, 3) uint8 RGB.
    """
    instances = instances[instances.ID >= 0].to("cpu")
    instances = instances[instances.scores.argsort()]  # the surest on top
    masks = instances.pred_masks.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    masks, boxes = masks.numpy(), masks_to_boxes(masks).int().tolist()
    colors = [identity_color(identity) for identity in instances.ID.tolist()]
    out = np.array(image.repeat(zoom, 0).repeat(zoom, 1), order="C")
    thickness = max(1, round(min(out.shape[:2]) / 300))
    for mask, (x0, y0, x1, y1), color in zip(masks, boxes, colors, strict=True):
        if x0 < x1:  # an empty mask has an empty box
            mask = np.ascontiguousarray(mask[y0:y1, x0:x1]).view(np.uint8)
            region = out[y0:y1, x0:x1]
            cv2.copyTo(cv2.addWeighted(np.full_like(region, color), alpha, region, 1 - alpha, 0), mask, region)
            contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(out, contours, -1, color, thickness, cv2.LINE_AA, offset=(x0, y0))
    if labels:
        rows = zip(instances.ID.tolist(), instances.pred_classes.tolist(), instances.scores.tolist(), boxes, colors, strict=True)
        for identity, category, score, (x0, y0, x1, _), color in rows:
            if x0 < x1:
                name = class_names[category] if class_names else f"class {category}"
                words = [f"#{identity}", *([] if class_names and len(class_names) == 1 else [name]), f"{score:.2f}"]
                _write_label(out, " ".join(words), x0, y0, color)
    return out


def readable_zoom(height: int, width: int) -> int:
    """The zoom that brings the short side of a frame to 360 pixels or more; 1 for larger frames."""
    return max(1, math.ceil(360 / min(height, width)))


def _write_label(image: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    """Text on a filled rectangle just above (x, y), moved where needed so that it stays inside the image."""
    height, width = image.shape[:2]
    scale = max(0.35, min(height, width) / 1000)
    thickness = max(1, round(scale * 1.5))
    (w, h), descent = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    h += descent + 2
    x = max(0, min(x, width - w - 2))
    y = max(h, min(y, height))
    cv2.rectangle(image, (x, y - h), (x + w + 1, y - 1), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)
    cv2.putText(image, text, (x + 1, y - descent), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA)
