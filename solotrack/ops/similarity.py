"""Similarity between two sets of embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["NORM_EPS", "pairwise_similarity"]

# Vectors shorter than this are divided by it rather than by their norm: a zero vector has cosine 0 and a finite gradient.
NORM_EPS = 1e-6


def pairwise_similarity(a: torch.Tensor, b: torch.Tensor, metric: str = "dot", scale: float = 1.0) -> torch.Tensor:
    """Similarity of every vector of ``a`` with every vector of ``b``, always in float32.

    A dot product of two embeddings easily passes float16's range (65,504) and exp() of one passes it beyond 11, so the product is
    taken in float32 inside autocast too (METHOD 2.5).

    Args:
        a: (..., n, D) embeddings of any floating type; leading dimensions are batch dimensions.
        b: (..., m, D) embeddings.
        metric: "dot" (raw dot product, paper eq 3) or "cosine".
        scale: factor on the similarity; 1 / temperature for a cosine that goes into a softmax.

    Returns:
        (..., n, m) float32.

    Raises:
        ValueError: unknown metric, or embeddings of different sizes.
    """
    if metric not in ("dot", "cosine"):
        raise ValueError(f"Unknown similarity metric {metric!r}; allowed: 'dot', 'cosine'.")
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"Embeddings of different sizes cannot be compared: {a.shape[-1]} and {b.shape[-1]}.")
    with torch.autocast(a.device.type, enabled=False):
        a, b = a.float(), b.float()
        if metric == "cosine":
            a = F.normalize(a, dim=-1, eps=NORM_EPS)
            b = F.normalize(b, dim=-1, eps=NORM_EPS)
        similarity = a @ b.transpose(-2, -1)
        return similarity if scale == 1.0 else similarity * scale
