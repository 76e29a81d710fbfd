"""The leave-one-out null term: without its own entry, an instance matches nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .comparison import MASKED_LOGIT, Comparison

__all__ = ["loo_null_loss"]


def loo_null_loss(comparison: Comparison, null_logit: float = 0.0) -> torch.Tensor:
    """Cross-entropy of a softmax over {null, the other instances} with the null as the answer (METHOD 2.5, LOO_NULL).

        L_i = -log ( e^null / (e^null + Σ_{j ≠ i} exp(s_ij)) )

    Eq (4) fixes differences of logits only; this term fixes their level, so that "below the null logit" can mean "a new object" when
    tracking. It uses what an image shows: take an instance out of the known ones and it is new to the rest. With two views the positive
    is taken out as well. Averages as ``contrast_loss``, over all rows; K = 1 gives 0.

    Args:
        null_logit: level that the similarities with other instances are pushed below.

    Returns:
        Scalar float32; a zero with a graph where no image has an instance.
    """
    logits = comparison.logits.masked_fill(~comparison.negatives, MASKED_LOGIT)
    with_null = F.pad(logits, (0, 1), value=null_logit)
    values = with_null.logsumexp(dim=1) - null_logit
    return comparison.average(values)
