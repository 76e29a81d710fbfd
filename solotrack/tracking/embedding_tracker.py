"""SOLO-Track's tracker: detections are classified as one of the remembered tracks by their embeddings, METHOD 5.3 and 5.4 (paper §3.2,
§3.3)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.tracking.base_tracker import TRACKER_HEADS_REGISTRY

from solotrack.config import tracker_similarity
from solotrack.ops.similarity import NORM_EPS, pairwise_similarity

from .assignment import assign
from .base import OnlineTracker, check_choice
from .cues import assign_masktrack, cue_overlap, cue_scores
from .memory import read_recent, remember

__all__ = ["EmbeddingTracker", "match_scores"]

_SIMS = ("softmax_null", "softmax", "bisoftmax", "masa")
_SMALLEST = 1e-6  # of the scores that cues take the logarithm of


def match_scores(
    similarity: torch.Tensor,
    cosine: torch.Tensor | None,
    sim: str = "softmax_null",
    null_logit: float | torch.Tensor = 0.0,
    new_thresh: float = 0.5,
    cos_min: float = 0.3,
) -> torch.Tensor:
    """How well n detections match K ≥ 1 tracks, and in column 0 the value from which on a match is good enough: METHOD 5.3.

    * ``softmax_null``: logarithm of the softmax over {null_logit, similarities}; column 0 is the null entry's.
    * ``softmax``: softmax over the tracks, column 0 is ``new_thresh``. With one track the softmax is 1 whatever the detection, so the
      cosine stands in its place and ``cos_min`` in that of the threshold.
    * ``bisoftmax``: mean of the softmax over the tracks and the softmax over the detections (QDTrack); column 0 is ``new_thresh``.
    * ``masa``: mean of ``bisoftmax`` and the cosine; column 0 is ``new_thresh``.

    Args:
        similarity: (n, K) logits, scale included.
        cosine: (n, K) cosines; only ``masa`` and ``softmax`` with one track read them.
        sim, null_logit, new_thresh, cos_min: as above.

    Returns:
        (n, 1 + K) float32.
    """
    n, num_tracks = similarity.shape
    if sim == "softmax_null":
        null = torch.as_tensor(null_logit, dtype=similarity.dtype, device=similarity.device).expand(n, 1)
        return torch.cat((null, similarity), dim=1).log_softmax(dim=1)
    if sim == "softmax" and num_tracks == 1:
        return torch.cat((cosine.new_full((n, 1), cos_min), cosine), dim=1)
    values = similarity.softmax(dim=1)
    if sim in ("bisoftmax", "masa"):
        values = (values + similarity.softmax(dim=0)) / 2
    if sim == "masa":
        values = (values + cosine) / 2
    return torch.cat((values.new_full((n, 1), new_thresh), values), dim=1)


@TRACKER_HEADS_REGISTRY.register()
class EmbeddingTracker(OnlineTracker):
    """Links a detection to the track whose prototype its embedding resembles most.

    A track's memory is one prototype embedding (D,), or its last ``memory`` embeddings: what looked different for a while is found again
    by what it looked like before (METHOD 5.7). Without cues the links follow :func:`~solotrack.tracking.assignment.assign`, greedy or
    Hungarian, on the values of :func:`match_scores`: a detection for which every track is worse than the null entry (or threshold)
    starts a track; one that lost every good enough track to better detections is dropped (``loser`` "new": starts a track).

    With ``cues`` the values are MaskTrack R-CNN's sum of cues (:func:`~solotrack.tracking.cues.cue_scores`), and "greedy" means its rules
    (:func:`~solotrack.tracking.cues.assign_masktrack`: no second choice, losers dropped); "hungarian" solves for the best total of the
    same values. The box (or mask) of a track is that of its last detection, its class that of its first. ``proto_update`` means the
    same with and without cues: the published post-processing is ``proto_update`` "last". Modes other than softmax_null have no
    probability of being new; there log p is the logarithm of the match value, and of the threshold for the null entry.

    With ``cue_iou_type`` "mask" a track also remembers a mask (H·W bytes), so set ``retain`` for long videos.
    """

    @configurable
    def __init__(
        self,
        *,
        sim: str = "softmax_null",
        metric: str = "dot",
        scale: float = 1.0,
        null_logit: float | None = None,
        new_thresh: float = 0.5,
        cos_min: float = 0.3,
        proto_update: str = "ema",
        proto_momentum: float = 0.5,
        memory: int = 0,
        memory_read: str = "max",
        loser: str = "drop",
        cues: bool = False,
        cue_score: float = 1.0,
        cue_iou: float = 2.0,
        cue_class: float = 10.0,
        cue_iou_type: str = "box",
        **common,
    ) -> None:
        """
        Args:
            sim: "softmax_null", "softmax", "bisoftmax" or "masa", see :func:`match_scores`.
            metric: "dot" or "cosine".
            scale: factor on the similarity.
            null_logit: logit of the null entry of softmax_null, in units of scale × similarity; None: :meth:`set_null_logit`, or 0.
            new_thresh: a best match below it is none (all modes but softmax_null).
            cos_min: cosine a match needs while there is one track (softmax only).
            proto_update: "last" (the newest embedding), "ema" or "mean" (of all embeddings of the track); with ``memory`` not looked at.
            proto_momentum: share of the new embedding in "ema".
            memory: 0, or the number of a track's newest embeddings that are kept in place of a prototype.
            memory_read: "max" or "mean", the similarity with a track from those with its embeddings.
            loser: "drop" or "new", what becomes of a detection whose track went to a better one.
            cues: use MaskTrack R-CNN's cues and rules.
            cue_score, cue_iou, cue_class: the cues' coefficients.
            cue_iou_type: "box" (with the original's +1 pixel) or "mask".
            common: the arguments of :class:`OnlineTracker`.
        """
        super().__init__(**common)
        self._sim = check_choice("sim", sim, _SIMS)
        self._metric = check_choice("metric", metric, ("dot", "cosine"))
        self._scale = scale
        self._fixed_null_logit = null_logit
        self._calibrated_null_logit: float | torch.Tensor | None = None
        self._new_thresh = new_thresh
        self._cos_min = cos_min
        self._proto_update = check_choice("proto_update", proto_update, ("last", "ema", "mean"))
        self._proto_momentum = proto_momentum
        self._memory_size = memory
        self._memory_read = check_choice("memory_read", memory_read, ("max", "mean"))
        self._loser = check_choice("loser", loser, ("drop", "new"))
        self._cues = cues
        self._cue_weights = {"score_weight": cue_score, "iou_weight": cue_iou, "class_weight": cue_class}
        self._cue_iou_type = check_choice("cue_iou_type", cue_iou_type, ("box", "mask"))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        trk = cfg.TRACKER_HEADS
        metric, scale = tracker_similarity(cfg)
        return super().from_config(cfg) | {
            "sim": trk.SIM,
            "metric": metric,
            "scale": scale,
            "null_logit": trk.NULL_LOGIT,
            "new_thresh": trk.NEW_THRESH,
            "cos_min": trk.COS_MIN,
            "proto_update": trk.PROTO_UPDATE,
            "proto_momentum": trk.PROTO_MOMENTUM,
            "memory": trk.MEMORY,
            "memory_read": trk.MEMORY_READ,
            "loser": trk.LOSER,
            "cues": trk.CUES.ENABLED,
            "cue_score": trk.CUES.SCORE,
            "cue_iou": trk.CUES.IOU,
            "cue_class": trk.CUES.CLASS,
            "cue_iou_type": trk.CUES.IOU_TYPE,
        }

    @property
    def null_logit(self) -> float | torch.Tensor:
        """The null logit in use: the constructor's, else the calibrated one, else 0."""
        if self._fixed_null_logit is not None:
            return self._fixed_null_logit
        return 0.0 if self._calibrated_null_logit is None else self._calibrated_null_logit

    @property
    def needs_null_logit(self) -> bool:
        """Whether a calibrated null logit is of use: ``softmax_null`` without one of its own."""
        return self._sim == "softmax_null" and self._fixed_null_logit is None

    def set_null_logit(self, value: float | torch.Tensor | None) -> None:
        """Hand over a checkpoint's calibrated null logit; one given to the constructor stays in force. It outlives :meth:`reset`.

        A scalar tensor on the detections' device is read anew in every frame: a model's buffer is followed wherever adaptation moves it.
        """
        self._calibrated_null_logit = value

    def _observe(self, instances: Instances) -> dict[str, torch.Tensor]:
        if not instances.has("embeddings"):
            raise ValueError(
                "EmbeddingTracker got detections without the field 'embeddings'. Use a model with MODEL.SOLO_TRACK.EMB.ENABLED True, "
                "or TRACKER_HEADS.TRACKER_NAME DistanceTracker or IoUTracker."
            )
        embeddings = instances.embeddings.float()
        if self._metric == "cosine":  # prototypes average directions; the length of an embedding means nothing there
            embeddings = F.normalize(embeddings, dim=1, eps=NORM_EPS)
        seen = {"embeddings": embeddings}
        if self._memory_size:
            seen["recent"] = F.pad(embeddings[:, None], (0, 0, 0, self._memory_size - 1))  # (n, M, D)
            seen["counts"] = torch.ones(len(instances), dtype=torch.int64, device=embeddings.device)
        elif self._proto_update == "mean":
            seen["counts"] = seen["embeddings"].new_ones(len(instances), 1)
        if self._cues:
            seen["classes"] = instances.pred_classes
            if self._cue_iou_type == "box":
                seen["boxes"] = instances.pred_boxes.tensor
            else:
                seen["masks"] = instances.pred_masks
        return seen

    def _match(self, instances: Instances, seen: Mapping[str, torch.Tensor]) -> np.ndarray:
        memory = self._memory
        similarity = self._similarity(seen["embeddings"], self._metric, self._scale)
        cosine = None
        if self._sim == "masa" or (self._sim == "softmax" and len(memory) == 1):
            cosine = self._similarity(seen["embeddings"], "cosine", 1.0)
        values = match_scores(similarity, cosine, self._sim, self.null_logit, self._new_thresh, self._cos_min)
        if self._cues:
            log_prob = values if self._sim == "softmax_null" else values.clamp(min=_SMALLEST).log()
            same_class = seen["classes"][:, None] == memory["classes"][None]
            overlap = cue_overlap(seen, memory, self._cue_iou_type)
            values = cue_scores(log_prob, instances.scores, overlap, same_class, **self._cue_weights)
        values = values.cpu().numpy()  # the frame's second and last transfer
        if self._cues and self._assignment == "greedy":
            return assign_masktrack(values[:, 1:], values[:, 0], self._loser)
        return assign(values[:, 1:], values[:, 0], self._assignment, self._loser)

    def _similarity(self, embeddings: torch.Tensor, metric: str, scale: float) -> torch.Tensor:
        """Of detections (n, D) with the K tracks: (n, K)."""
        memory = self._memory
        if not self._memory_size:
            return pairwise_similarity(embeddings, memory["embeddings"], metric, scale)
        similarity = pairwise_similarity(embeddings, memory["recent"].flatten(0, 1), metric, scale)  # (n, K M)
        return read_recent(similarity.unflatten(1, (len(memory), self._memory_size)), memory["counts"], self._memory_read)

    def _renew(self, rows: np.ndarray, seen: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        columns = super()._renew(rows, seen)
        index = torch.from_numpy(rows).to(seen["embeddings"].device)
        if self._memory_size:
            recent, counts = self._memory["recent"][index], self._memory["counts"][index]
            columns["recent"], columns["counts"] = remember(recent, counts, seen["embeddings"])
            return columns
        if self._proto_update == "last":
            return columns
        prototypes = self._memory["embeddings"][index]
        if self._proto_update == "ema":
            columns["embeddings"] = prototypes.lerp(seen["embeddings"], self._proto_momentum)
        else:
            columns["counts"] = self._memory["counts"][index] + 1
            columns["embeddings"] = prototypes + (seen["embeddings"] - prototypes) / columns["counts"]
        return columns
