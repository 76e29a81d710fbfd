"""IoUTracker+: MaskTrack R-CNN's cues without appearance, METHOD 7.4 (paper §4.4, Table 3; Yang et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.tracking.base_tracker import TRACKER_HEADS_REGISTRY

from .assignment import assign
from .base import OnlineTracker, check_choice
from .cues import assign_masktrack, cue_overlap, cue_scores

__all__ = ["IoUTrackerPlus"]


@TRACKER_HEADS_REGISTRY.register()
class IoUTrackerPlus(OnlineTracker):
    """Links by score, overlap and class alone: v_i(n) = log s_n + 2·IoU(n, i) + 10·[class_n = class_i].

    A detection may take the tracks that it overlaps, those whose last box (or mask) has an IoU of at least ``min_iou``; one that overlaps
    none starts a track. The rest are MaskTrack R-CNN's rules (:func:`~solotrack.tracking.cues.assign_masktrack`): it takes the
    candidate of the largest v, without a second choice, and of several detections on one track the best has it. "hungarian" solves for
    the best total of the same values. A track's class is that of its first detection; tracks never end, unless ``retain`` says so.
    """

    @configurable
    def __init__(
        self,
        *,
        min_iou: float = 0.3,
        loser: str = "drop",
        cue_score: float = 1.0,
        cue_iou: float = 2.0,
        cue_class: float = 10.0,
        cue_iou_type: str = "box",
        **common,
    ) -> None:
        """
        Args:
            min_iou: the smallest IoU of a link; pairs that do not overlap at all are never linked.
            loser: "drop" or "new", what becomes of a detection whose track went to a better one.
            cue_score, cue_iou, cue_class: the cues' coefficients.
            cue_iou_type: "box" (with the original's +1 pixel) or "mask".
            common: the arguments of :class:`OnlineTracker`.
        """
        super().__init__(**common)
        self._min_iou = min_iou
        self._loser = check_choice("loser", loser, ("drop", "new"))
        self._cue_weights = {"score_weight": cue_score, "iou_weight": cue_iou, "class_weight": cue_class}
        self._cue_iou_type = check_choice("cue_iou_type", cue_iou_type, ("box", "mask"))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        trk = cfg.TRACKER_HEADS
        return super().from_config(cfg) | {
            "min_iou": trk.IOU.MIN,
            "loser": trk.LOSER,
            "cue_score": trk.CUES.SCORE,
            "cue_iou": trk.CUES.IOU,
            "cue_class": trk.CUES.CLASS,
            "cue_iou_type": trk.CUES.IOU_TYPE,
        }

    def _observe(self, instances: Instances) -> dict[str, torch.Tensor]:
        position = {"masks": instances.pred_masks} if self._cue_iou_type == "mask" else {"boxes": instances.pred_boxes.tensor}
        return position | {"classes": instances.pred_classes}

    def _match(self, instances: Instances, seen: Mapping[str, torch.Tensor]) -> np.ndarray:
        iou = cue_overlap(seen, self._memory, self._cue_iou_type)  # (n, K)
        same_class = seen["classes"][:, None] == self._memory["classes"][None]
        no_appearance = iou.new_zeros(len(iou), 1 + iou.shape[1])
        values = cue_scores(no_appearance, instances.scores, iou, same_class, **self._cue_weights)
        values[:, 0] -= self._cue_weights["class_weight"]  # unlinked: neither overlap nor class in common
        values[:, 1:].masked_fill_((iou < self._min_iou) | (iou <= 0), -torch.inf)
        values = values.cpu().numpy()
        if self._assignment == "greedy":
            return assign_masktrack(values[:, 1:], values[:, 0], self._loser)
        return assign(values[:, 1:], values[:, 0], self._assignment, self._loser)
