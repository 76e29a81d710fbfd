"""The image losses of the embedding head, put together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from .center_loss import center_loss
from .centers import InstanceCenters, instance_centers
from .comparison import compare_centers, count_pictures
from .contrast_loss import contrast_loss
from .infonce import info_nce_loss
from .loo_null_loss import loo_null_loss
from .max_entropy import max_entropy_term
from .queue import CenterQueue

__all__ = ["InstanceContrastiveLoss"]


class InstanceContrastiveLoss(nn.Module):
    """Center-Contra loss with maximum entropy and leave-one-out null terms, or InfoNCE (paper eqs 1 to 6, METHOD 2.3 to 2.9).

    center_weight * L_center + contrast_weight * L_contra (eq 5) + null_weight * L_null + me_weight * L_me, all times ``loss_weight``.

    Cosine similarity: the contrast then has no gradient along an embedding, so the L1 distance of raw embeddings, which is proportional
    to their length, shrinks them unopposed; what the contrast still sees are directions of near-zero vectors, with a gradient that grows
    as 1 / length (METHOD 15's row .535). So with ``metric="cosine"`` embeddings are brought to unit length before anything else: centers
    are means of unit vectors, the center loss compares directions, and no term depends on an embedding's length.
    """

    @configurable
    def __init__(
        self,
        *,
        level_sizes: Sequence[int],
        loss: str = "center_contra",
        pool_levels: str = "all",
        metric: str = "dot",
        scale: float = 1.0,
        scope: str = "image",
        null_logit: float | None = None,
        center_reduction: str = "mean",
        center_type: str = "l1",
        center_detach: bool = False,
        loss_weight: float = 1.0,
        center_weight: float = 1.0,
        contrast_weight: float = 1.0,
        null_weight: float = 0.0,
        me_mode: str = "paper",
        me_weight: float = 0.1,
        me_start_iter: int = 0,
        queue: CenterQueue | None = None,
    ):
        """
        Args:
            level_sizes: cells of each level, adding up to R.
            loss: "center_contra" (eqs 2 to 5) or "infonce" (eq 1 in their place). The other two terms follow their own weights.
            pool_levels: "all" (one center an instance) or "per_level" (one for each level it is active on; levels are not compared).
            metric, scale: of the logits; the scale is 1 / temperature for "cosine".
            scope: "image", "batch" or "gather", see ``compare_centers``. InfoNCE stays within the image, as eq (1).
            null_logit: extra entry of every softmax of eq (3), None for none; also the level of the leave-one-out term, which
                takes 0 where this is None.
            center_reduction, center_type, center_detach: see ``center_loss``.
            me_mode: "none" or a mode of ``max_entropy_term``.
            me_start_iter: iteration the maximum entropy term starts at: at the start of training S is uniform, its entropy at its highest.
            queue: centers of past steps that every softmax of the contrast, null and entropy terms has as other instances.
        """
        super().__init__()
        self.level_sizes = list(level_sizes)
        self.loss = loss
        self.per_level = pool_levels == "per_level"
        self.metric = metric
        self.scale = scale
        self.scope = scope
        self.null_logit = null_logit
        self.center_reduction = center_reduction
        self.center_type = center_type
        self.center_detach = center_detach
        self.loss_weight = loss_weight
        self.center_weight = center_weight
        self.contrast_weight = contrast_weight
        self.null_weight = null_weight
        self.me_mode = me_mode
        self.me_weight = me_weight
        self.me_start_iter = me_start_iter
        self.queue = queue

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        emb, me = cfg.MODEL.SOLO_TRACK.EMB, cfg.MODEL.SOLO_TRACK.ME
        return {
            "level_sizes": [size**2 for size in cfg.MODEL.SOLO.NUM_GRIDS],
            "loss": emb.LOSS,
            "pool_levels": emb.POOL_LEVELS,
            "metric": emb.SIM,
            "scale": emb.SCALE if emb.SIM == "dot" else 1.0 / emb.TEMPERATURE,
            "scope": emb.SCOPE,
            "null_logit": emb.NULL_LOGIT,
            "center_reduction": emb.CENTER_REDUCTION,
            "center_type": emb.CENTER_TYPE,
            "center_detach": emb.CENTER_DETACH,
            "loss_weight": emb.LOSS_WEIGHT,
            "center_weight": emb.CENTER_WEIGHT,
            "contrast_weight": emb.LAMBDA,
            "null_weight": emb.LOO_NULL,
            "me_mode": me.MODE,
            "me_weight": me.WEIGHT,
            "me_start_iter": me.START_ITER,
            "queue": CenterQueue(emb.QUEUE, emb.DIM) if emb.QUEUE > 0 else None,
        }

    def forward(
        self,
        embeddings: torch.Tensor,
        instance_index: torch.Tensor,
        gt_ids: Sequence[torch.Tensor],
        views: int,
        iteration: int,
    ) -> dict[str, torch.Tensor]:
        """Weighted losses, only the terms that are switched on.

        Args:
            embeddings: (N, R, D) of every cell, any floating type; the losses are float32 inside autocast too.
            instance_index: (N, R) long, place of the cell's instance in ``gt_ids[n]``; -1 = background.
            gt_ids: N tensors (M_n,) long, ids of the ground truths within their picture, the same in both views. Ground truths of one
                image that share an id are one instance in several places: they have one center.
            views: 1, or 2: images 0 to N/2 - 1 are first views, N/2 to N - 1 second views of the same pictures in the same order.
            iteration: of training, from 0.

        Returns:
            Scalars "loss_center" and "loss_contrast" (or "loss_infonce"), "loss_null", "loss_me".

        Raises:
            ValueError: shapes that do not fit, or two views with an odd number of images.
        """
        num_images = len(gt_ids)
        pictures = count_pictures(num_images, views)
        num_levels = len(self.level_sizes) if self.per_level else 1
        with torch.autocast(embeddings.device.type, enabled=False):
            centers = instance_centers(
                embeddings,
                _first_of_id(instance_index, gt_ids),
                [len(ids) for ids in gt_ids],
                level_sizes=self.level_sizes if self.per_level else None,
                normalize=self.metric == "cosine",
            )
            instances = _ids_of_centers(centers, gt_ids) if views == 2 else centers.gt_index  # (K,)
            losses = {}
            if self.loss == "infonce":
                losses["loss_infonce"] = self.loss_weight * info_nce_loss(
                    centers.features,
                    (centers.image_ids % pictures)[centers.cell_centers],
                    instances[centers.cell_centers],
                    num_images=pictures,
                    metric=self.metric,
                    scale=self.scale,
                )
            elif self.center_weight > 0:
                losses["loss_center"] = (self.loss_weight * self.center_weight) * center_loss(
                    centers,
                    num_images=num_images,
                    num_levels=num_levels,
                    reduction=self.center_reduction,
                    loss_type=self.center_type,
                    detach=self.center_detach,
                )

            with_contrast = self.loss == "center_contra" and self.contrast_weight > 0
            with_null = self.null_weight > 0
            with_me = self.me_mode != "none" and self.me_weight > 0 and iteration >= self.me_start_iter
            if not (with_contrast or with_null or with_me):
                return losses
            comparison = compare_centers(
                centers,
                instances,
                num_images=num_images,
                num_levels=num_levels,
                views=views,
                scope=self.scope,
                metric=self.metric,
                scale=self.scale,
                queue=None if self.queue is None else (self.queue.centers, self.queue.levels),
            )
            if self.queue is not None and self.training:
                self.queue.push(centers.centers, centers.levels)
            if with_contrast:
                losses["loss_contrast"] = (self.loss_weight * self.contrast_weight) * contrast_loss(comparison, self.null_logit)
            if with_null:
                level = 0.0 if self.null_logit is None else self.null_logit
                losses["loss_null"] = (self.loss_weight * self.null_weight) * loo_null_loss(comparison, level)
            if with_me:
                losses["loss_me"] = (self.loss_weight * self.me_weight) * max_entropy_term(comparison, self.me_mode, self.null_logit)
            return losses


def _first_of_id(instance_index: torch.Tensor, gt_ids: Sequence[torch.Tensor]) -> torch.Tensor:
    """``instance_index`` (N, R), each ground truth replaced by the first of its image that has the same id."""
    ids = torch.nn.utils.rnn.pad_sequence(list(gt_ids), batch_first=True, padding_value=-1)  # (N, M)
    if ids.shape[1] == 0:
        return instance_index
    first = (ids[:, :, None] == ids[:, None, :]).int().argmax(dim=2)  # (N, M)
    return torch.where(instance_index < 0, instance_index, first.gather(1, instance_index.clamp(min=0)))


def _ids_of_centers(centers: InstanceCenters, gt_ids: Sequence[torch.Tensor]) -> torch.Tensor:
    """(K,) the ground-truth id of each center."""
    sizes = [len(ids) for ids in gt_ids]
    starts = torch.tensor([0, *sizes[:-1]], device=centers.image_ids.device).cumsum(0)  # (N,)
    return torch.cat(list(gt_ids))[starts[centers.image_ids] + centers.gt_index]
