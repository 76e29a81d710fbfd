"""SOLO's losses (METHOD 1.4). Both are computed in float32 whatever the precision of the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from .head import SOLOHead
from .targets import GridTargets

__all__ = ["category_loss", "dice_loss", "mask_loss"]


def category_loss(logits: torch.Tensor, classes: torch.Tensor, alpha: float = 0.25, gamma: float = 2.0) -> torch.Tensor:
    """Sigmoid focal loss over all cells, divided by the number of positive cells of this process + 1 (METHOD 1.4).

    Args:
        logits: (N, R, C).
        classes: (N, R) int64, C where background.
        alpha: weight of the positives, 1 - alpha being that of the negatives.
        gamma: exponent of the focusing factor.
    """
    num_classes = logits.shape[2]
    one_hot = F.one_hot(classes, num_classes + 1)[..., :-1]  # no class is right for a background cell
    positives = (classes != num_classes).sum()
    return sigmoid_focal_loss(logits, one_hot, alpha=alpha, gamma=gamma, reduction="sum") / (positives + 1)


def dice_loss(mask_logits: torch.Tensor, mask_targets: torch.Tensor) -> torch.Tensor:
    """1 - 2 sum(pq) / (sum(p^2) + sum(q^2) + 0.002) of each mask: (n, h, w) logits and 0/1 targets -> (n,) (METHOD 1.4)."""
    p = mask_logits.float().sigmoid().flatten(1)
    q = mask_targets.to(p.dtype).flatten(1)
    overlap = (p * q).sum(1)
    total = p.square().sum(1) + 0.001 + q.sum(1) + 0.001  # q^2 = q
    return 1 - 2 * overlap / total


def mask_loss(head: SOLOHead, features: Sequence[torch.Tensor], targets: GridTargets) -> torch.Tensor:
    """Mean Dice loss over the positive cells of all levels and images (METHOD 1.4).

    The mask branch runs only on the levels that have a positive cell. Parameters that take no part get zero gradients, not none, so that
    DistributedDataParallel finds all of them; without any positive cell the loss is such a zero.

    Args:
        head: SOLO's head.
        features: rescaled feature maps, one (N, Cin, h, w) a level.
        targets: of the batch.
    """
    positives = targets.positives()
    levels = sorted({p.level for p in positives})
    # unbind: the gradients of a level's N images are put together once; of N indexings each would be as large as all images
    mask_features = {level: feature.unbind() for level, feature in zip(levels, head.mask_features(features, levels), strict=True)}
    losses = [
        dice_loss(head.mask_logits(mask_features[p.level][p.image], p.level, p.cells), targets.mask_targets(p))  # (n,)
        for p in positives
    ]
    unused = [p for level, conv in enumerate(head.mask_out) if level not in levels for p in conv.parameters()]
    if not levels:
        unused += head.mask_tower.parameters()
    zero = sum((p.flatten()[:0].sum() for p in unused), start=torch.zeros((), device=targets.classes.device))
    return torch.cat(losses).mean() + zero if losses else zero
