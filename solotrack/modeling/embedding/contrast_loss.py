"""The contrast loss: centers of different instances differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .comparison import MASKED_LOGIT, Comparison

__all__ = ["contrast_loss", "row_log_softmax"]


def row_log_softmax(comparison: Comparison, null_logit: float | None = None) -> torch.Tensor:
    """log S of eq (3), (K, K + Q): each row normalised over its candidates and, where given, a constant null entry.

    Entries that are no candidates hold a large negative number with probability 0 and no gradient.
    """
    logits = comparison.logits.masked_fill(~comparison.candidates, MASKED_LOGIT)
    if null_logit is None:
        return F.log_softmax(logits, dim=1)
    with_null = F.pad(logits, (0, 1), value=null_logit)
    return F.log_softmax(with_null, dim=1)[:, :-1]


def contrast_loss(comparison: Comparison, null_logit: float | None = None) -> torch.Tensor:
    """L_contra = CE(S, I): every center is most similar to its positive (paper eqs 3 and 4, METHOD 2.5).

        L_i = -log ( exp(s_ii) / (e^null + Σ_k exp(s_ik)) )

    Mean over the rows of an image, then over all images with K >= 1 (scope "image", METHOD 2.6); mean over all rows for the wider
    scopes. An image with one instance has a loss of exactly 0 (its softmax has one entry; the null entry, if any, changes that) and
    does count in the average over images. With two views the positive is the instance's center in the other view; rows without one
    do not count, their pictures do.

    Args:
        null_logit: logit of an extra entry in every row, the "k = 0" of eq (3); None (default) for none.

    Returns:
        Scalar float32; a zero with a graph where no image has an instance.
    """
    log_s = row_log_softmax(comparison, null_logit)
    values = -(log_s * comparison.positives).sum(dim=1)
    return comparison.average(values, rows=comparison.positives.any(dim=1))
