"""How well embeddings tell instances apart, and links keep them, where the true identities are known: METHOD 15.

The measures need no detector: embeddings may come from the cells of true objects, so that they judge the embedding alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata

from solotrack.ops.similarity import pairwise_similarity

__all__ = ["AssociationResult", "IdentifiedFrame", "LinkResult", "association_metrics", "link_accuracy", "roc_auc"]


@dataclass
class IdentifiedFrame:
    """A frame's n instances.

    Attributes:
        embeddings: (n, D).
        identities: (n,) int64, unique in a frame; the same object has the same number in every frame of its video.
        centers: (n, 2) x, y in pixels.
        categories: (n,) int64, or None where they do not matter.
    """

    embeddings: torch.Tensor
    identities: torch.Tensor
    centers: torch.Tensor
    categories: torch.Tensor | None = None


@dataclass
class AssociationResult:
    """Measures over all pairs of consecutive frames; NaN where nothing was counted.

    Attributes:
        match: share of instances whose most similar prototype is their own.
        distance: the same by nearest centre.
        new_object_auc: ROC AUC of "known" against "new" by the largest similarity, 0.5 = no better than chance.
        null_rate: share of new objects whose largest similarity lies below the null logit.
        instances: number of instances counted (each once as known, once as new).
        candidates: mean number of prototypes an instance had to choose from; 1 / candidates is about chance.
    """

    match: float
    distance: float
    new_object_auc: float
    null_rate: float
    instances: int
    candidates: float


@dataclass
class LinkResult:
    """What a tracker's IDs did to the true identities.

    Attributes:
        accuracy: kept / links; NaN without links.
        links: pairs of successive appearances of an identity.
        kept: links whose two appearances have the same ID, not -1.
        switches: times an identity's ID differs from the last ID it had (appearances with -1 are passed over).
    """

    accuracy: float
    links: int
    kept: int
    switches: int


def association_metrics(
    videos: Iterable[Sequence[IdentifiedFrame]],
    metric: str = "cosine",
    new_metric: str = "dot",
    new_scale: float = 1.0,
    null_logit: float = 0.0,
    same_category: bool = False,
) -> AssociationResult:
    """Measure embeddings of known identities over consecutive frames.

    The memory for a frame holds the previous frame's embeddings of the instances present in both. An instance is counted when there is
    at least one prototype beside its own: matched against all ("known", right when its own is nearest; a tie counts as 1 / number of
    tied prototypes), and once more with its own taken out ("new").

    Args:
        videos: frames in order, video by video; only two frames and two numbers an instance are held.
        metric: "cosine" or "dot", for ``match``.
        new_metric: the same for ``new_object_auc`` and ``null_rate``.
        new_scale: factor on the similarities of ``new_metric``, as ``null_logit`` is in units of them.
        null_logit: b, see ``null_rate``.
        same_category: only prototypes of the instance's category are candidates, as trackers with a category rule have it.

    Raises:
        ValueError: ``same_category`` without categories.
    """
    matched, nearest, known, new, candidates = [], [], [], [], []
    for frames in videos:
        previous = None
        for frame in frames:
            if previous is not None:
                counted = _compare(previous, frame, metric, new_metric, new_scale, same_category)
                for total, part in zip((matched, nearest, known, new, candidates), counted, strict=True):
                    total.append(part)
            previous = frame
    matched, nearest, known, new, candidates = (
        np.concatenate(parts) if parts else np.empty(0) for parts in (matched, nearest, known, new, candidates)
    )
    return AssociationResult(
        match=_mean(matched),
        distance=_mean(nearest),
        new_object_auc=roc_auc(known, new),
        null_rate=_mean(new < null_logit),
        instances=len(matched),
        candidates=_mean(candidates),
    )


def _compare(
    previous: IdentifiedFrame, frame: IdentifiedFrame, metric: str, new_metric: str, new_scale: float, same_category: bool
) -> tuple[np.ndarray, ...]:
    """Match, distance (shares in [0, 1]), largest similarity as known and as new, and candidates of the m counted instances, (m,) each."""
    same = frame.identities[:, None] == previous.identities[None]
    rows, columns = same.nonzero(as_tuple=True)  # instance m of the frame is instance m of the previous one, by the order of the frame
    if not len(rows):
        return (np.empty(0),) * 5
    own = torch.eye(len(rows), dtype=torch.bool, device=same.device)
    allowed = torch.ones_like(own)
    if same_category:
        if frame.categories is None or previous.categories is None:
            raise ValueError("same_category needs the categories of every frame.")
        allowed = own | (frame.categories[rows][:, None] == previous.categories[columns][None])
    now, before = frame.embeddings[rows], previous.embeddings[columns]
    offset = frame.centers[rows][:, None].double() - previous.centers[columns][None].double()
    logits = pairwise_similarity(now, before, new_metric, new_scale).masked_fill(~allowed, -torch.inf)
    measures = (
        _own_is_top(pairwise_similarity(now, before, metric), own, allowed),
        _own_is_top(-offset.square().sum(dim=-1), own, allowed),
        logits.amax(dim=1),
        logits.masked_fill(own, -torch.inf).amax(dim=1),
        allowed.sum(dim=1),
    )
    counted = allowed.sum(dim=1) > 1  # there is something to confuse it with
    return tuple(torch.stack([measure[counted].double() for measure in measures]).cpu().numpy())


def _own_is_top(values: torch.Tensor, own: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """(m,) share of the row's largest allowed values (m, m) that its own has: 1 or 0, a fraction in a tie."""
    values = values.masked_fill(~allowed, -torch.inf)
    tops = values == values.amax(dim=1, keepdim=True)
    return (tops & own).sum(dim=1) / tops.sum(dim=1)


def roc_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive's score is larger than a negative's, a tie counting half; NaN when either is empty.

    Args:
        positive: (p,) scores.
        negative: (q,) scores.
    """
    p, q = len(positive), len(negative)
    if not p or not q:
        return float("nan")
    ranks = rankdata(np.concatenate((positive, negative)))  # ties share their mean rank
    return float((ranks[:p].sum() - p * (p + 1) / 2) / (p * q))


def link_accuracy(ids: Sequence[Sequence[int]], identities: Sequence[Sequence[int]]) -> LinkResult:
    """Compare a tracker's IDs with the true identities over one video.

    Args:
        ids: for each frame the (n,) track IDs, -1 for none.
        identities: for each frame the (n,) true identities of the same instances; negative ones are left out.

    Raises:
        ValueError: a frame's lengths differ.
    """
    ids, identities = ([np.asarray(frame, dtype=np.int64).reshape(-1) for frame in frames] for frames in (ids, identities))
    if [len(frame) for frame in ids] != [len(frame) for frame in identities]:
        raise ValueError("ids and identities must have the same number of frames, and of instances in each frame.")
    if not ids:
        return LinkResult(accuracy=float("nan"), links=0, kept=0, switches=0)
    track, identity = np.concatenate(ids), np.concatenate(identities)
    real = identity >= 0
    track, identity = track[real], identity[real]
    order = np.argsort(identity, kind="stable")  # appearances of one identity side by side, in the order of the frames
    track, identity = track[order], identity[order]

    link = identity[1:] == identity[:-1]
    kept = link & (track[1:] == track[:-1]) & (track[1:] >= 0)
    tracked = track >= 0
    track, identity = track[tracked], identity[tracked]
    switched = (identity[1:] == identity[:-1]) & (track[1:] != track[:-1])
    links, kept = int(link.sum()), int(kept.sum())
    return LinkResult(accuracy=kept / links if links else float("nan"), links=links, kept=kept, switches=int(switched.sum()))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
