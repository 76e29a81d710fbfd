"""The grid cells that stand for a frame's instances (METHOD 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from solotrack.ops.masks import mask_iou

from ..solo.head import SOLOHead
from ..solo.inference import Candidates, SOLOInference, find_candidates

__all__ = ["instance_nodes", "point_nodes"]


@torch.no_grad()
def instance_nodes(
    inference: SOLOInference,
    head: SOLOHead,
    features: Sequence[torch.Tensor],
    category_scores: torch.Tensor,
    padded_size: tuple[int, int],
    min_score: float,
    max_nodes: int,
    nms_thresh: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One cell an instance: what SOLO's inference keeps, masks and all ("mask_nms"), less the copies of better ones.

    Matrix NMS lowers the score of a copy but seldom removes it, and two nodes on one object are a pair that no walk can tell apart.

    Args:
        inference, head: SOLO's.
        features: rescaled feature maps, one (N, Cin, h, w) a level.
        category_scores: (N, R, C) probabilities.
        padded_size: (Hp, Wp) of the batch.
        min_score: after Matrix NMS.
        max_nodes: the best of each frame.
        nms_thresh: mask IoU with a better node, whatever its class, above which a node goes; 1 = none does.

    Returns:
        cells: (N, max_nodes) int64 over all levels, 0 where not valid, so that it can be gathered.
        valid: (N, max_nodes) bool.
    """
    kept = []
    for found, soft, _ in inference.select(head, features, category_scores, padded_size):
        if nms_thresh < 1:
            masks = soft > inference.mask_thresh
            found = found[~(mask_iou(masks, masks).triu(1) > nms_thresh).any(dim=0)]  # by descending score
        kept.append(found)
    return _side_by_side(kept, min_score, max_nodes, category_scores.device)


@torch.no_grad()
def point_nodes(
    category_scores: torch.Tensor, num_grids: Sequence[int], min_score: float, max_nodes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells whose score survives point NMS ("point_nms"): cheaper, but an object may yield several, which the cycle then pushes apart.

    Arguments and results as for :func:`instance_nodes`; ``num_grids`` are S of each level, ``min_score`` is of the category.
    """
    n = len(category_scores)
    found = find_candidates(category_scores.float().amax(dim=2, keepdim=True), num_grids, min_score, limit=max_nodes)
    kept = [found[found.image == image] for image in range(n)]
    for image in kept:
        order = image.scores.argsort(descending=True, stable=True)
        image.cells, image.scores = image.cells[order], image.scores[order]
    return _side_by_side(kept, min_score, max_nodes, category_scores.device)


def _side_by_side(kept: Sequence[Candidates], min_score: float, max_nodes: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    cells = torch.zeros(len(kept), max_nodes, dtype=torch.int64, device=device)
    valid = torch.zeros_like(cells, dtype=torch.bool)
    for row, found in enumerate(kept):
        n = min(len(found.cells), max_nodes)
        cells[row, :n] = found.cells[:n]
        valid[row, :n] = found.scores[:n] >= min_score
    return torch.where(valid, cells, 0), valid
