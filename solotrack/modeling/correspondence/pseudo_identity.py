"""Identities guessed from unlabelled clips, and what the image embedding learns from them (METHOD 11, idea 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from solotrack.ops.similarity import pairwise_similarity

__all__ = ["confident_links", "mutual_links", "pseudo_identity_loss", "track_labels"]

# In place of minus infinity: its exponential is exactly 0 beside any logit that occurs.
_NEVER = -1e30


@torch.no_grad()
def confident_links(
    embeddings: torch.Tensor, valid: torch.Tensor, *, metric: str, temperature: float, null_sim: float | torch.Tensor, thresh: float
) -> torch.Tensor:
    """Nodes of successive frames that are each other's nearest, and between which a walk there and back is probable.

    The probability is A_ij · B_ji with the affinities of the cycle loss, but a step may also go to a dust bin. Without it the only node of
    a frame would be a sure partner of any other's.

    Args:
        embeddings: (B, F, N, D) of up to N nodes in each of F frames of B clips.
        valid: (B, F, N) bool, which of them there are.
        metric, temperature: of the affinities, see ``cycle_loss``.
        null_sim: similarity of the dust bin, before division by the temperature.
        thresh: probability that a link needs.

    Returns:
        (B, F - 1, N, N) bool, nodes of frame t (rows) and t + 1 (columns), at most one link in a row and in a column.
    """
    logits = pairwise_similarity(embeddings[:, :-1], embeddings[:, 1:], metric, 1.0 / temperature)
    mutual = mutual_links(logits, valid)
    logits = logits.masked_fill(~_pairs(valid), _NEVER)
    null = torch.zeros_like(logits[..., :1]) + null_sim / temperature  # (B, F - 1, N, 1)
    out = torch.cat([logits, null], dim=3).log_softmax(dim=3)[..., :-1]
    back = torch.cat([logits, null.transpose(2, 3)], dim=2).log_softmax(dim=2)[..., :-1, :]
    return mutual & ((out + back).exp() > thresh)


def mutual_links(similarity: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Nodes of successive frames that are each other's most similar (METHOD 3.4).

    Args:
        similarity: (B, F - 1, N, N), in any units, of nodes of frame t (rows) and t + 1 (columns).
        valid: (B, F, N) bool, which nodes there are.

    Returns:
        (B, F - 1, N, N) bool, at most one link in a row and in a column.
    """
    pairs = _pairs(valid)
    similarity = similarity.masked_fill(~pairs, _NEVER)
    nodes = torch.arange(similarity.shape[2], device=similarity.device)
    nearest = (similarity.argmax(dim=3, keepdim=True) == nodes) & (similarity.argmax(dim=2, keepdim=True) == nodes[:, None])
    return pairs & nearest


def _pairs(valid: torch.Tensor) -> torch.Tensor:
    """(B, F - 1, N, N) bool from (B, F, N): which pairs of nodes of successive frames there are."""
    return valid[:, :-1, :, None] & valid[:, 1:, None, :]


def track_labels(links: torch.Tensor) -> torch.Tensor:
    """Number of each node's track within its clip: links (B, F - 1, N, N) of ``confident_links`` -> (B, F, N) long."""
    clips, steps, nodes, _ = links.shape
    own = torch.arange(nodes, device=links.device).expand(clips, nodes)
    labels = [own]
    for step in range(steps):
        linked, partner = links[:, step].to(torch.uint8).max(dim=1)  # (B, N) of the columns
        labels.append(torch.where(linked.bool(), labels[-1].gather(1, partner), own + (step + 1) * nodes))
    return torch.stack(labels, dim=1)


def pseudo_identity_loss(
    embeddings: torch.Tensor, valid: torch.Tensor, links: torch.Tensor, videos: torch.Tensor, *, metric: str, scale: float
) -> torch.Tensor:
    """A node's embedding is most similar to those of its own track.

        L_ip = -log ( exp(s_ip) / (exp(s_ip) + Σ_n exp(s_in)) ),   p another node of i's track

    Mean over p, then over all nodes i that have one. n runs over the other nodes of those frames of the clip in which i's track was found
    (in another frame any node might be i, unrecognised), and over all nodes of other videos' clips.

    Args:
        embeddings: (B, F, N, D), any floating type; the gradient goes here.
        valid: (B, F, N) bool.
        links: (B, F - 1, N, N) bool, see ``confident_links``.
        videos: (B,) long, equal for clips of one video: what is seen in both may be the same.
        metric, scale: see ``pairwise_similarity``.

    Returns:
        Scalar float32; a zero with a graph where nothing is linked.
    """
    clips, frames, nodes = valid.shape
    flat, real = embeddings.flatten(0, 2), valid.flatten()  # (M, D), (M,)
    clip = torch.arange(clips, device=valid.device).repeat_interleave(frames * nodes)
    label, video = track_labels(links).flatten(), videos.repeat_interleave(frames * nodes)

    pair = real[:, None] & real  # (M, M)
    track = pair & (clip[:, None] == clip) & (label[:, None] == label)
    found = track.unflatten(1, (clips, frames, nodes)).any(dim=3, keepdim=True)  # (M, B, F, 1) frames that show i's track
    rivals = pair & ~track & found.expand(-1, -1, -1, nodes).flatten(1)
    negatives = rivals | (pair & (video[:, None] != video))
    positives = track & ~torch.eye(len(real), dtype=torch.bool, device=valid.device)

    logits = pairwise_similarity(flat, flat, metric, scale)
    level = logits.masked_fill(~negatives, _NEVER).logsumexp(dim=1, keepdim=True)
    values = F.softplus(level - logits) * positives  # -log(e^s / (e^s + e^n)) = log(1 + e^(n - s))
    partners = positives.sum(dim=1)
    return (values.sum(dim=1) / partners.clamp(min=1)).sum() / (partners > 0).sum().clamp(min=1)
