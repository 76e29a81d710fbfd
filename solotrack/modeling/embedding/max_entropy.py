"""The maximum entropy term: an instance is equally unlike all others."""

from __future__ import annotations

import torch

from .comparison import MASKED_LOGIT, Comparison
from .contrast_loss import row_log_softmax

__all__ = ["max_entropy_term"]


def max_entropy_term(comparison: Comparison, mode: str = "paper", null_logit: float | None = None) -> torch.Tensor:
    """Entropy of the similarities with other instances as a loss to add (paper eq 6, METHOD 2.7).

        H_i = -Σ_{j ≠ i} S_ij log S_ij

    Modes:
        "paper": -H, which maximises the entropy. S is normalised with the diagonal in it, so H also grows by taking mass off the
            diagonal: weights near 1 work against the contrast loss, weights up to 0.1 only even out the rest.
        "offdiag": minus the entropy of q_ij = S_ij / (1 - S_ii) divided by its largest value log(K - 1), hence in [-1, 0]. It has no
            quarrel with the contrast loss. Rows with fewer than two other instances (K < 3) add 0.
        "minimize": +H, the sign of the one public re-implementation (METHOD 2.8); against the paper's text.

    With two views, j runs over everything but the instance itself and its positive. Averages as ``contrast_loss``, over all rows.

    Args:
        null_logit: the extra entry of the softmax S, as in ``contrast_loss``; "offdiag" has no use for it.

    Returns:
        Scalar float32; a zero with a graph where no image has an instance.

    Raises:
        ValueError: unknown mode.
    """
    negatives = comparison.negatives
    if mode in ("paper", "minimize"):
        log_p = row_log_softmax(comparison, null_logit)
        entropy = -(log_p.exp() * log_p * negatives).sum(dim=1)
        return comparison.average(entropy if mode == "minimize" else -entropy)
    if mode != "offdiag":
        raise ValueError(f"Unknown maximum entropy mode {mode!r}; allowed: 'paper', 'offdiag', 'minimize'.")
    # A softmax of the masked logits: dividing probabilities would lose all digits once S_ii is near 1.
    log_q = comparison.logits.masked_fill(~negatives, MASKED_LOGIT).log_softmax(dim=1)
    entropy = -(log_q.exp() * log_q * negatives).sum(dim=1)
    largest = negatives.sum(dim=1).clamp(min=2).log()  # of one entry or none the entropy is 0 anyway
    return comparison.average(-entropy / largest)
