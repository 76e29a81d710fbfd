"""The SOLO baseline: linking by spatial distance and category, METHOD 7.3 (paper §4.3, Table 1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.tracking.base_tracker import TRACKER_HEADS_REGISTRY

from solotrack.ops.masks import centers_of_mass

from .assignment import assign
from .base import OnlineTracker

__all__ = ["DistanceTracker", "relative_distance"]


def relative_distance(centers_a: torch.Tensor, areas_a: torch.Tensor, centers_b: torch.Tensor, areas_b: torch.Tensor) -> torch.Tensor:
    """Distances between centres (n, 2) and (m, 2) in units of √(mean of the two box areas), a mean area under 1 counting as 1: (n, m)."""
    difference = centers_a[:, None] - centers_b[None]
    mean_area = (areas_a[:, None] + areas_b[None]) / 2
    return difference.square().sum(dim=-1).sqrt() / mean_area.clamp(min=1).sqrt()


@TRACKER_HEADS_REGISTRY.register()
class DistanceTracker(OnlineTracker):
    """Links a detection to the track whose last mask centre is nearest.

    distance = ‖difference of the mask centroids‖ / √(mean box area), nearest pairs first (or Hungarian). A detection that gets no track
    within ``max_distance`` starts one, also when another detection took the track it was near to: a neighbour of an object is not
    therefore a second detection of it.
    """

    @configurable
    def __init__(self, *, max_distance: float = 1.0, same_class: bool = True, retain: int = 5, **common) -> None:
        """
        Args:
            max_distance: the largest distance of a link, in object sizes.
            same_class: link only detections of the track's class.
            retain: as in :class:`OnlineTracker`.
            common: the other arguments of :class:`OnlineTracker`.
        """
        super().__init__(retain=retain, **common)
        self._max_distance = max_distance
        self._same_class = same_class

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        distance = cfg.TRACKER_HEADS.DISTANCE
        return super().from_config(cfg) | {"max_distance": distance.MAX, "same_class": distance.SAME_CLASS, "retain": distance.RETAIN}

    def _observe(self, instances: Instances) -> dict[str, torch.Tensor]:
        return {
            "centers": centers_of_mass(instances.pred_masks),
            "boxes": instances.pred_boxes.tensor,
            "classes": instances.pred_classes,
        }

    def _match(self, instances: Instances, seen: Mapping[str, torch.Tensor]) -> np.ndarray:
        memory = self._memory
        values = -relative_distance(seen["centers"], _areas(seen["boxes"]), memory["centers"], _areas(memory["boxes"]))
        if self._same_class:
            values = values.masked_fill(seen["classes"][:, None] != memory["classes"][None], -torch.inf)
        return assign(values.cpu().numpy(), -self._max_distance, self._assignment, loser="new")


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
