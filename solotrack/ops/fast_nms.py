"""Fast NMS: suppression of boxes in one step."""

from __future__ import annotations

import torch

from .masks import box_iou

__all__ = ["fast_nms"]


def fast_nms(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, iou_thresh: float) -> torch.Tensor:
    """Boxes that no better box of their class overlaps by more than ``iou_thresh``, whether that one stays itself or not.

    Ordinary NMS lets a suppressed box suppress no other; without that rule nothing is left to be done one after the other. YOLACT (Bolya et
    al., ICCV 2019) §3.3; METHOD 7.2.

    Args:
        boxes: (n, 4) XYXY.
        scores: (n,); of equal ones the first is the better.
        classes: (n,).
        iou_thresh: a larger IoU suppresses.

    Returns:
        indices (k,) of the boxes that stay, by descending score.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    if len(order) == 0:
        return order
    boxes, classes = boxes[order], classes[order]
    overlap = box_iou(boxes, boxes).masked_fill_(classes[:, None] != classes[None], 0.0).triu_(1)  # (n better, n)
    return order[overlap.amax(0) <= iou_thresh]
