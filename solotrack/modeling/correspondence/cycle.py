"""Cycle-consistent correspondence of instances over the frames of a clip (paper §3.4, METHOD 3.3, 3.4)."""

from __future__ import annotations

import math

import torch

from solotrack.ops.similarity import pairwise_similarity

__all__ = ["cycle_loss"]

# In place of minus infinity: its softmax is exactly 0 in float32, and rows of nothing else stay finite.
_NEVER = -1e30
_LOG_HALF = math.log(0.5)


def cycle_loss(
    embeddings: torch.Tensor,
    valid: torch.Tensor,
    *,
    metric: str = "cosine",
    temperature: float = 0.07,
    unmatched: str = "none",
    null_sim: float | torch.Tensor = 0.3,
    palindrome: str = "full",
    edge_dropout: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of walking through a clip and back against coming home (paper eqs 7 and 8).

    With S_t the similarities of the nodes of frame t (rows) and t + 1 (columns), A_t = softmax over the columns of S_t / τ and B_t =
    softmax over the columns of S_tᵀ / τ. The walk M = A_0 ⋯ A_{F-2} · B_{F-2} ⋯ B_0 is P×P for P nodes in the first frame, and the loss
    the mean of -log M_ii over its rows, then over the clips that say anything. Products are taken of logarithms, so a walk however
    improbable has a gradient. With 2 frames the walk is t → t + 1 → t.

    A clip says nothing when a frame has no node, or when no frame has more than one (its loss is 0 whatever the embeddings).

    Objects without a partner (``unmatched``): with fewer nodes Q in a frame than P at the start, mean M_ii is at most Q / P and the loss at
    least log(P / Q), a pull between different objects.

    * "none": eq 8 as written.
    * "start_small": a clip whose last frame has fewer nodes than its first is walked from its last.
    * "null": each step of the way out may also go to a dust bin, at similarity ``null_sim``; rows of which more than half ends in one
      are left out.
    * "mutual": only rows whose most probable way out and back comes home.

    Args:
        embeddings: (B, F, N, D) of up to N nodes in each of F ≥ 2 frames of B clips, any floating type.
        valid: (B, F, N) bool, which of them there are, in any order.
        metric: "cosine" or "dot".
        temperature: τ.
        unmatched: see above.
        null_sim: see above, before division by τ.
        palindrome: "full", or "all": the mean of the walks to each of the frames and back.
        edge_dropout: share of the affinities that are taken out before the softmax, of both directions alike.

    Returns:
        Scalar float32; a zero with a graph where no clip says anything.

    Raises:
        ValueError: fewer than 2 frames, or an unknown mode.
    """
    if embeddings.shape[1] < 2:
        raise ValueError(f"A cycle needs 2 frames; the clips have {embeddings.shape[1]}.")
    if unmatched not in ("none", "start_small", "null", "mutual"):
        raise ValueError(f"There is no mode {unmatched!r}; use 'none', 'start_small', 'null' or 'mutual'.")
    if palindrome not in ("full", "all"):
        raise ValueError(f"There is no palindrome {palindrome!r}; use 'full' or 'all'.")
    counts = valid.sum(dim=2)  # (B, F)
    if unmatched == "start_small":
        backwards = (counts[:, -1] < counts[:, 0])[:, None]
        embeddings = torch.where(backwards[..., None, None], embeddings.flip(1), embeddings)
        valid, counts = torch.where(backwards[..., None], valid.flip(1), valid), torch.where(backwards, counts.flip(1), counts)

    with torch.autocast(embeddings.device.type, enabled=False):
        logits = pairwise_similarity(embeddings[:, :-1], embeddings[:, 1:], metric, 1.0 / temperature)  # (B, F - 1, N, N)
        if edge_dropout > 0:
            # far above what does not exist: where all is dropped, the softmax is over the nodes that there are
            logits = logits.masked_fill(torch.rand_like(logits) < edge_dropout, _NEVER / 10)
        out = _log_affinity(logits, valid[:, 1:])
        back = _log_affinity(logits.transpose(-2, -1), valid[:, :-1])
        rows = valid[:, 0]  # (B, N)
        if unmatched == "null":
            bin_logit = logits.new_zeros((*logits.shape[:-1], 1)) + null_sim / temperature
            with_bin = torch.cat([logits.masked_fill(~valid[:, 1:, None], _NEVER), bin_logit], dim=-1).log_softmax(dim=-1)
            out = with_bin[..., :-1]

        walk, return_walk = out[:, 0], back[:, 0]
        losses, weights = [], []
        for last in range(out.shape[1]):
            if last:
                walk = _log_matmul(walk, out[:, last])
                return_walk = _log_matmul(back[:, last], return_walk)
            if palindrome == "full" and last < out.shape[1] - 1:
                continue
            home = (walk + return_walk.transpose(1, 2)).logsumexp(dim=2)  # (B, N) log M_ii; of the product only the diagonal is wanted
            counted = rows & _telling(counts[:, : last + 2])[:, None]
            if unmatched == "null":
                counted &= walk.detach().logsumexp(dim=2) > _LOG_HALF
            elif unmatched == "mutual":
                counted &= _comes_home(walk.detach(), return_walk.detach())
            number = counted.sum(dim=1)
            losses.append(-torch.where(counted, home, 0).sum(dim=1) / number.clamp(min=1))
            weights.append(number > 0)
        loss, weight = torch.stack(losses), torch.stack(weights)  # (walks, B)
        return (loss * weight).sum() / weight.sum().clamp(min=1)


def _log_affinity(logits: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the columns that exist: (..., N, N) and (..., N)."""
    return logits.masked_fill(~valid[..., None, :], _NEVER).log_softmax(dim=-1)


def _log_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Logarithm of the product of the matrices whose logarithms are (B, N, K) and (B, K, M)."""
    return (a[..., :, :, None] + b[..., None, :, :]).logsumexp(dim=-2)


def _comes_home(walk: torch.Tensor, return_walk: torch.Tensor) -> torch.Tensor:
    """(B, N): the nodes to which the most probable node at the far end would return."""
    there = walk.argmax(dim=2)
    back = return_walk.argmax(dim=2).gather(1, there)
    return back == torch.arange(walk.shape[1], device=walk.device)


def _telling(counts: torch.Tensor) -> torch.Tensor:
    """(B,): clips with a node in each frame and more than one in some, from (B, F)."""
    return (counts.amin(dim=1) > 0) & (counts.amax(dim=1) > 1)
