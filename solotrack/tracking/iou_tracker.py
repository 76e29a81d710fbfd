"""Plain linking by overlap, without appearance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.tracking.base_tracker import TRACKER_HEADS_REGISTRY

from solotrack.ops.masks import box_iou, mask_iou

from .assignment import assign
from .base import OnlineTracker, check_choice

__all__ = ["IoUTracker"]


@TRACKER_HEADS_REGISTRY.register()
class IoUTracker(OnlineTracker):
    """Links a detection to the track whose last mask or box it overlaps most.

    Largest IoU first (or Hungarian); pairs that do not overlap are never linked. A detection that gets no track with an IoU of at least
    ``min_iou`` starts one, also when another detection took the track it overlapped.
    """

    @configurable
    def __init__(self, *, min_iou: float = 0.3, iou_type: str = "mask", same_class: bool = True, retain: int = 5, **common) -> None:
        """
        Args:
            min_iou: the smallest IoU of a link.
            iou_type: "mask" or "box".
            same_class: link only detections of the track's class.
            retain: as in :class:`OnlineTracker`.
            common: the other arguments of :class:`OnlineTracker`.
        """
        super().__init__(retain=retain, **common)
        self._min_iou = min_iou
        self._iou_type = check_choice("iou_type", iou_type, ("mask", "box"))
        self._same_class = same_class

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        iou = cfg.TRACKER_HEADS.IOU
        return super().from_config(cfg) | {"min_iou": iou.MIN, "iou_type": iou.TYPE, "same_class": iou.SAME_CLASS, "retain": iou.RETAIN}

    def _observe(self, instances: Instances) -> dict[str, torch.Tensor]:
        position = {"masks": instances.pred_masks} if self._iou_type == "mask" else {"boxes": instances.pred_boxes.tensor}
        return position | {"classes": instances.pred_classes}

    def _match(self, instances: Instances, seen: Mapping[str, torch.Tensor]) -> np.ndarray:
        memory = self._memory
        iou = mask_iou(seen["masks"], memory["masks"]) if self._iou_type == "mask" else box_iou(seen["boxes"], memory["boxes"])
        barred = iou <= 0
        if self._same_class:
            barred |= seen["classes"][:, None] != memory["classes"][None]
        return assign(iou.masked_fill(barred, -torch.inf).cpu().numpy(), self._min_iou, self._assignment, loser="new")
