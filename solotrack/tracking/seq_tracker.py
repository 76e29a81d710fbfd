"""SeqTracker: the best paths through a whole video's detections, METHOD 7.4 (paper §4.4, Table 3; Yang et al., ICCV 2019; Seq-NMS)."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.tracking.base_tracker import TRACKER_HEADS_REGISTRY

from solotrack.ops.masks import box_iou

from .offline import OfflineTracker

__all__ = ["SeqTracker", "best_paths"]


@TRACKER_HEADS_REGISTRY.register()
class SeqTracker(OfflineTracker):
    """Takes the path of the largest total score out of the video, and again out of what is left, until nothing is left.

    A path holds one detection a frame, without gaps. It scores the sum of its detections' scores and of its links' gains,
    β·IoU + γ·[same class] - c; a link needs an IoU above ``min_iou``. With a path go the detections that overlap it in its frames. IDs
    count in the order in which paths are found, best first. IoUs are those of boxes, with MaskTrack R-CNN's +1 pixel as in the other
    trackers' cues; boxes of frames of another size are scaled to the first one's.
    """

    @configurable
    def __init__(
        self,
        *,
        min_iou: float = 0.3,
        iou_weight: float = 2.0,
        class_weight: float = 10.0,
        link_cost: float = 10.0,
        nms_thresh: float = 0.5,
        max_tracks: int = 0,
        **common,
    ) -> None:
        """
        Args:
            min_iou: a link needs a larger IoU.
            iou_weight, class_weight, link_cost: β, γ and c of a link's gain.
            nms_thresh: IoU with a detection of a path above which another of its frame goes with the path; 1 = none.
            max_tracks: paths taken at most; 0 = no limit.
            common: the arguments of :class:`OfflineTracker`.
        """
        super().__init__(**common)
        self._min_iou = min_iou
        self._weights = (iou_weight, class_weight, link_cost)
        self._nms_thresh = nms_thresh
        self._max_tracks = max_tracks

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        seq = cfg.TRACKER_HEADS.SEQ
        return super().from_config(cfg) | {
            "min_iou": seq.MIN_IOU,
            "iou_weight": seq.IOU,
            "class_weight": seq.CLASS,
            "link_cost": seq.COST,
            "nms_thresh": seq.NMS,
            "max_tracks": seq.MAX_TRACKS,
        }

    def reset(self) -> None:
        self._first_size: tuple[int, int] | None = None
        self._scores: list[np.ndarray] = []  # (n,) float64 a frame
        self._classes: list[np.ndarray] = []  # (n,)
        self._boxes: list[torch.Tensor] = []  # (n, 4), on the host

    def _remember(self, instances: Instances, scores: np.ndarray) -> None:
        height, width = instances.image_size
        self._first_size = self._first_size or (height, width)
        scale_x, scale_y = self._first_size[1] / width, self._first_size[0] / height
        boxes = torch.cat((instances.pred_boxes.tensor.float(), instances.pred_classes[:, None].float()), dim=1).cpu()  # one transfer
        self._scores.append(scores.astype(np.float64))
        self._classes.append(boxes[:, 4].numpy().astype(np.int64))
        self._boxes.append(boxes[:, :4] * boxes.new_tensor((scale_x, scale_y) * 2))

    def link(self) -> list[np.ndarray]:
        gains = [self._gains(t) for t in range(1, len(self._boxes))]
        overlaps = [(box_iou(boxes, boxes, plus_one=True) > self._nms_thresh).numpy() for boxes in self._boxes]
        return best_paths(self._scores, gains, overlaps, self._max_tracks)

    def _gains(self, t: int) -> np.ndarray:
        """Gain of every link from frame t - 1 to frame t, (n, m) float64; -inf where there is none."""
        iou_weight, class_weight, cost = self._weights
        iou = box_iou(self._boxes[t - 1], self._boxes[t], plus_one=True).numpy()
        same_class = self._classes[t - 1][:, None] == self._classes[t][None]
        gains = iou_weight * iou.astype(np.float64) + class_weight * same_class - cost
        return np.where(iou > self._min_iou, gains, -np.inf)


def best_paths(scores: list[np.ndarray], gains: list[np.ndarray], overlaps: list[np.ndarray], max_paths: int = 0) -> list[np.ndarray]:
    """Paths of the largest total score, one after the other, each without what went with those before it.

    best(t, n) = s_n + max(0, max over m in t - 1 of best(t - 1, m) + gain(m, n)) is the score of the best path that ends in n; dynamic
    programming over frames, one matrix operation a pair of frames. Taking a path out changes best() in its own frames and as far behind
    them as paths went on through it; only these frames are computed again.

    Args:
        scores: T arrays (n_t,) of the detections' scores.
        gains: T - 1 arrays (n_t, n_t+1) of the links' gains, -inf for pairs that must not be linked.
        overlaps: T arrays (n_t, n_t) bool: column m goes when row n is taken. A detection taken goes in any case.
        max_paths: number of paths taken at most; 0 = no limit.

    Returns:
        T arrays (n_t,) int64: the number of the path, in the order of finding, or -1.
    """
    scores = [x.astype(np.float64) for x in scores]  # of what is left; -inf once gone
    ids = [np.full(len(x), -1, dtype=np.int64) for x in scores]
    best = [np.full(len(x), np.nan) for x in scores]  # as never computed
    before = [np.full(len(x), -1, dtype=np.int64) for x in scores]  # where the best path comes from, -1 if it starts here
    top = np.full(len(scores), -np.inf)  # of each frame's best

    def compute(first: int, last: int) -> None:
        """Bring best() up to date, given that nothing but frames ``first`` to ``last`` has changed."""
        for t in range(first, len(scores)):
            value = scores[t].copy()
            source = np.full(len(value), -1, dtype=np.int64)
            if t and len(value) and len(scores[t - 1]):
                through = best[t - 1][:, None] + gains[t - 1]  # (m, n)
                arrival = through.max(axis=0)
                joined = arrival > 0
                source[joined] = through.argmax(axis=0)[joined]
                value[joined] += arrival[joined]
            settled = t > last and np.array_equal(value, best[t])
            best[t], before[t] = value, source
            if settled:
                return
            top[t] = value.max(initial=-np.inf)

    compute(0, len(scores) - 1)
    count = 0
    while top.max(initial=-np.inf) > -np.inf and (max_paths == 0 or count < max_paths):
        t = last = int(top.argmax())
        n = int(best[t].argmax())
        while n >= 0:
            ids[t][n] = count
            scores[t][overlaps[t][n]] = -np.inf
            scores[t][n] = -np.inf
            t, n = t - 1, int(before[t][n])
        compute(t + 1, last)
        count += 1
    return ids
