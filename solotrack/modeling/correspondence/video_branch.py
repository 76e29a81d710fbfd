"""The video branch: a tracking embedding of its own, learned from unlabelled clips (paper §3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from ...config import tracker_similarity
from ..embedding.head import EmbeddingHead
from ..solo.head import SOLOHead
from ..solo.inference import SOLOInference
from .cycle import cycle_loss
from .nodes import instance_nodes, point_nodes
from .pseudo_identity import confident_links, pseudo_identity_loss

__all__ = ["ClipLosses", "ClipNodes", "VideoBranch"]

_UNCALIBRATED = 0.3  # similarity of the dust bin where no calibrated null logit tells it


class ClipLosses(NamedTuple):
    """What a batch of clips says, as scalars; the losses are float32 and not yet weighted.

    Attributes:
        cycle: of the correspondence (paper eq 8).
        nodes: mean number of nodes of a frame.
        identity: of the pseudo identities; None where these are switched off.
        links: mean number of confident links from a frame to the next; None likewise.
    """

    cycle: torch.Tensor
    nodes: torch.Tensor
    identity: torch.Tensor | None = None
    links: torch.Tensor | None = None


class ClipNodes(NamedTuple):
    """The instances of B clips of F frames, up to n a frame (METHOD 3.2).

    Attributes:
        cells: (B, F, n) int64, the cell that stands for each.
        valid: (B, F, n) bool, which of them there are.
    """

    cells: torch.Tensor
    valid: torch.Tensor

    def read(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Their embeddings (B, F, n, D) from those of all cells of each frame, (B * F, R, D)."""
        index = self.cells.flatten(0, 1)[..., None].expand(-1, -1, embeddings.shape[2])
        return embeddings.gather(1, index).unflatten(0, self.cells.shape[:2])


class VideoBranch(nn.Module):
    """An embedding head and the cycle loss over its embeddings of the instances of a clip.

    The gradient reaches the features that the head reads (backbone and FPN), which the image head shares; tracking reads the image head
    (paper §4.3). With
    pseudo identities the image head itself learns from clips: what the branch's own head links with confidence is one object to it.

    Attributes:
        head: the branch's own embedding head; None: the image head is used.
    """

    @configurable
    def __init__(
        self,
        *,
        head: EmbeddingHead | None,
        init_from_image: bool = True,
        loss_weight: float = 1.0,
        warmup_iters: int = 500,
        nodes: str = "mask_nms",
        node_score: float = 0.2,
        node_nms: float = 0.5,
        max_nodes: int = 20,
        metric: str = "cosine",
        temperature: float = 0.07,
        unmatched: str = "none",
        null_sim: float | None = None,
        palindrome: str = "full",
        edge_dropout: float = 0.0,
        pseudo_weight: float = 0.0,
        pseudo_thresh: float = 0.5,
        image_metric: str = "cosine",
        image_scale: float = 1.0,
        null_metric: str = "cosine",
        null_scale: float = 1.0,
    ) -> None:
        """
        Args:
            head: see the class.
            init_from_image: weights that come without this branch start it from the image head.
            loss_weight, warmup_iters: the weight rises linearly from 0 over this many iterations.
            nodes: "mask_nms" or "point_nms", see :mod:`.nodes`.
            node_score, node_nms, max_nodes: score a node needs, mask IoU with a better one it may have, and the most nodes of a frame.
            metric, temperature, unmatched, null_sim, palindrome, edge_dropout: see :func:`cycle_loss`; edges are dropped in training alone.
                A ``null_sim`` of None is that at which the image head's calibrated null logit stands, if both are cosines.
            pseudo_weight: of the loss of pseudo identities, which rises like the other; 0 = off.
            pseudo_thresh: see :func:`confident_links`.
            image_metric, image_scale: of the image head's similarity, as its image losses have it.
            null_metric, null_scale: the same as the tracker has it, for which the null logit is calibrated.
        """
        super().__init__()
        self.head = head
        self.init_from_image = init_from_image
        self.loss_weight = loss_weight
        self.warmup_iters = warmup_iters
        self.nodes = nodes
        self.node_score = node_score
        self.node_nms = node_nms
        self.max_nodes = max_nodes
        self.metric = metric
        self.temperature = temperature
        self.unmatched = unmatched
        self.null_sim = null_sim
        self.palindrome = palindrome
        self.edge_dropout = edge_dropout
        self.pseudo_weight = pseudo_weight
        self.pseudo_thresh = pseudo_thresh
        self.image_metric = image_metric
        self.image_scale = image_scale
        # the image head's embeddings have length 1 where its losses compare cosines
        self.null_is_cosine = "cosine" in (null_metric, image_metric)
        self.null_scale = null_scale

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        video, emb = cfg.MODEL.SOLO_TRACK.VIDEO, cfg.MODEL.SOLO_TRACK.EMB
        null_metric, null_scale = tracker_similarity(cfg)
        return {
            "head": None if video.SHARE_HEAD else EmbeddingHead(cfg, input_shape),
            "init_from_image": video.INIT_FROM_IMAGE,
            "loss_weight": video.LOSS_WEIGHT,
            "warmup_iters": video.WARMUP_ITERS,
            "nodes": video.NODES,
            "node_score": video.NODE_SCORE,
            "node_nms": video.NODE_NMS,
            "max_nodes": video.MAX_NODES,
            "metric": video.SIM,
            "temperature": video.TEMPERATURE,
            "unmatched": video.UNMATCHED,
            "null_sim": video.NULL_SIM,
            "palindrome": video.PALINDROME,
            "edge_dropout": video.EDGE_DROPOUT,
            "pseudo_weight": video.PSEUDO_WEIGHT,
            "pseudo_thresh": video.PSEUDO_THRESH,
            "image_metric": emb.SIM,
            "image_scale": emb.SCALE if emb.SIM == "dot" else 1.0 / emb.TEMPERATURE,
            "null_metric": null_metric,
            "null_scale": null_scale,
        }

    def losses(
        self,
        features: Sequence[torch.Tensor],
        for_embedding: Sequence[torch.Tensor],
        frames: int,
        padded_size: tuple[int, int],
        detector: SOLOHead,
        inference: SOLOInference,
        image_head: EmbeddingHead,
        videos: torch.Tensor | None = None,
        unmatched: str = "",
    ) -> ClipLosses:
        """The losses of a batch of clips.

        Args:
            features: of the clips' frames, one clip after the other: (B * frames, Cin, h, w) a level; the detector's.
            for_embedding: the same for the embedding heads.
            frames: in a clip.
            padded_size: (Hp, Wp) of the batch.
            detector, inference: find the nodes, without gradient.
            image_head: takes the place of a head of its own, and learns the pseudo identities.
            videos: (B,) long, equal for clips of one video, for pseudo identities; None leaves these out.
            unmatched: in place of the branch's own mode; "" keeps it.

        Raises:
            ValueError: ``frames`` is 1, or there is no such mode.
        """
        nodes = self.find_nodes([feature.detach() for feature in features], frames, padded_size, detector, inference)
        embeddings, valid = nodes.read((image_head if self.head is None else self.head)(for_embedding)), nodes.valid
        null_sim = self._null_similarity(image_head)
        cycle = cycle_loss(
            embeddings,
            valid,
            metric=self.metric,
            temperature=self.temperature,
            unmatched=unmatched or self.unmatched,
            null_sim=null_sim,
            palindrome=self.palindrome,
            edge_dropout=self.edge_dropout if self.training else 0.0,
        )
        found = ClipLosses(cycle, valid.sum(dim=2).float().mean())
        if videos is None:
            return found
        links = confident_links(
            embeddings, valid, metric=self.metric, temperature=self.temperature, null_sim=null_sim, thresh=self.pseudo_thresh
        )
        learning = embeddings if self.head is None else nodes.read(image_head(for_embedding))
        identity = pseudo_identity_loss(learning, valid, links, videos, metric=self.image_metric, scale=self.image_scale)
        return found._replace(identity=identity, links=links.sum(dim=(2, 3)).float().mean())

    @torch.no_grad()
    def find_nodes(
        self, features: Sequence[torch.Tensor], frames: int, padded_size: tuple[int, int], detector: SOLOHead, inference: SOLOInference
    ) -> ClipNodes:
        """The instances of clips of ``frames`` frames each (METHOD 3.2); arguments as for :meth:`losses`."""
        scores = detector.category_logits(features).float().sigmoid()
        if self.nodes == "point_nms":
            found = point_nodes(scores, detector.num_grids, self.node_score, self.max_nodes)
        else:
            found = instance_nodes(inference, detector, features, scores, padded_size, self.node_score, self.max_nodes, self.node_nms)
        return ClipNodes(*(x.unflatten(0, (-1, frames)) for x in found))

    def _null_similarity(self, image_head: EmbeddingHead) -> float | torch.Tensor:
        """Similarity of the dust bin."""
        if self.null_sim is not None:
            return self.null_sim
        if self.metric != "cosine" or not self.null_is_cosine:
            return _UNCALIBRATED
        return (image_head.null_logit / self.null_scale).nan_to_num(_UNCALIBRATED)

    def weights(self, iteration: int) -> tuple[float, float]:
        """Of the cycle loss and of the pseudo identities at an iteration of training, counted from 0."""
        share = min(1.0, (iteration + 1) / max(self.warmup_iters, 1))
        return share * self.loss_weight, share * self.pseudo_weight
