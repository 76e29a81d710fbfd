"""Embedding and link measures against slow references."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from solotrack.evaluation.association import IdentifiedFrame, association_metrics, link_accuracy, roc_auc


def frame(identities: list[int], embeddings: list, centers: list | None = None, categories: list[int] | None = None) -> IdentifiedFrame:
    n = len(identities)
    return IdentifiedFrame(
        embeddings=torch.tensor(embeddings, dtype=torch.float32).reshape(n, -1 if n else 2),
        identities=torch.tensor(identities, dtype=torch.int64),
        centers=torch.tensor(centers if centers is not None else [[0.0, 0.0]] * n).reshape(n, 2),
        categories=None if categories is None else torch.tensor(categories),
    )


def random_videos(seed: int) -> list[list[IdentifiedFrame]]:
    rng = np.random.default_rng(seed)
    videos = []
    for _ in range(6):
        objects, video = rng.normal(size=(6, 4)), []
        for _ in range(5):
            present = rng.permutation(6)[: rng.integers(0, 7)]
            embeddings = objects[present] + rng.normal(scale=0.8, size=(len(present), 4))
            centers = present[:, None] * 5.0 + rng.normal(scale=4, size=(len(present), 2))
            tensors = (torch.from_numpy(x) for x in (embeddings.astype(np.float32), present, centers.astype(np.float32), present % 2))
            video.append(IdentifiedFrame(*tensors))
        videos.append(video)
    return videos


def reference(
    videos: list[list[IdentifiedFrame]], null_logit: float, scale: float, same_category: bool
) -> tuple[float, float, float, float, int]:
    match, distance, known, new = [], [], [], []
    for video in videos:
        for previous, now in itertools.pairwise(video):
            before = {int(i): k for k, i in enumerate(previous.identities)}
            after = {int(i): k for k, i in enumerate(now.identities)}
            common = [i for i in after if i in before]
            for i in common:
                f = now.embeddings[after[i]].double()
                rivals = [j for j in common if j != i and (not same_category or i % 2 == j % 2)]
                if not rivals:
                    continue
                g = {j: previous.embeddings[before[j]].double() for j in [i, *rivals]}
                cosines = {j: float(f @ v / f.norm() / v.norm()) for j, v in g.items()}
                dots = {j: scale * float(f @ v) for j, v in g.items()}
                gaps = {j: float((now.centers[after[i]] - previous.centers[before[j]]).norm()) for j in g}
                match.append(max(cosines, key=cosines.get) == i)
                distance.append(min(gaps, key=gaps.get) == i)
                known.append(max(dots.values()))
                new.append(max(dots[j] for j in rivals))
    auc = np.mean([(k > n) + 0.5 * (k == n) for k in known for n in new])
    return np.mean(match), np.mean(distance), auc, np.mean([n < null_logit for n in new]), len(match)


@pytest.mark.parametrize("same_category", [False, True])
def test_equals_reference(same_category: bool) -> None:
    for seed in range(3):
        videos = random_videos(seed)
        result = association_metrics(iter(videos), null_logit=0.7, new_scale=0.5, same_category=same_category)
        expected = reference(videos, 0.7, 0.5, same_category)
        values = (result.match, result.distance, result.new_object_auc, result.null_rate, result.instances)
        assert values == pytest.approx(expected)
        assert 0 < result.match < 1 and 0 < result.distance < 1 and 0 < result.null_rate < 1


def test_by_hand() -> None:
    first = frame([1, 2], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [10.0, 0.0]])
    second = frame(
        [2, 1, 3], [[0.0, 2.0], [3.0, 1.0], [5.0, 5.0]], [[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]
    )  # object 2 jumped to object 1's place
    result = association_metrics([[first, second]], null_logit=0.5)
    assert (result.match, result.distance, result.instances, result.candidates) == (1.0, 0.5, 2, 2.0)
    # Known: 2, 3. New (the other's prototype): 0, 1. Of the new, 0 lies below the null logit.
    assert (result.new_object_auc, result.null_rate) == (1.0, 0.5)


def test_metrics_of_the_two_parts() -> None:
    """A long wrong prototype has the larger dot product, not the larger cosine."""
    first, second = frame([1, 2], [[1.0, 0.0], [9.0, 9.0]]), frame([1, 2], [[1.0, 0.1], [1.0, 1.0]])
    assert association_metrics([[first, second]], metric="cosine").match == 1.0
    assert association_metrics([[first, second]], metric="dot").match == 0.5
    # Cosines, known: about 1 and 1; new: .78 and .71, all below a null logit of .8 but none of the dot products (9.9 and 1).
    assert association_metrics([[first, second]], new_metric="cosine", null_logit=0.8).null_rate == 1.0
    assert association_metrics([[first, second]], new_metric="dot", null_logit=0.8).null_rate == 0.0
    assert association_metrics([[first, second]], new_metric="cosine", new_scale=2.0, null_logit=0.8).null_rate == 0.0


def test_ties_count_as_chance() -> None:
    """Embeddings that are all the same are right one time in three, and cannot tell new from known."""
    same = frame([1, 2, 3], [[1.0, 0.0]] * 3, [[5.0, 5.0]] * 3)
    result = association_metrics([[same, same]])
    assert (result.match, result.distance, result.new_object_auc) == pytest.approx((1 / 3, 1 / 3, 0.5))


def test_what_is_not_counted() -> None:
    one, two, none = frame([1], [[1.0, 0.0]]), frame([1, 2], [[1.0, 0.0], [0.0, 1.0]]), frame([], [])
    for frames in ([], [two], [one, one], [two, none, two], [two, one, two]):
        result = association_metrics([frames])
        assert result.instances == 0
        assert all(math.isnan(x) for x in (result.match, result.distance, result.new_object_auc, result.null_rate, result.candidates))
    assert association_metrics([[two], [two]]).instances == 0  # videos are not joined


def test_same_category() -> None:
    first = frame([1, 2, 3], [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], categories=[0, 1, 1])
    second = frame([1, 2, 3], [[1.0, 0.06], [1.0, 0.0], [0.0, 1.0]], categories=[0, 1, 1])
    assert association_metrics([[first, second]]).match == pytest.approx(1 / 3)
    result = association_metrics([[first, second]], same_category=True)  # object 1 has no rival, 2 can only be taken for 3
    assert (result.match, result.instances, result.candidates) == (1.0, 2, 2.0)
    without = frame([1, 2], [[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="categories"):
        association_metrics([[without, without]], same_category=True)


def test_roc_auc() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        positive, negative = rng.integers(2, 8, 30).astype(float), rng.integers(0, 6, 17).astype(float)
        expected = np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative))
        assert roc_auc(positive, negative) == pytest.approx(expected)
    assert math.isnan(roc_auc(np.empty(0), np.ones(3)))
    assert math.isnan(roc_auc(np.ones(3), np.empty(0)))


def link_reference(ids: list[list[int]], identities: list[list[int]]) -> tuple[int, int, int]:
    links = kept = switches = 0
    last_seen: dict[int, int] = {}
    last_id: dict[int, int] = {}
    for frame_ids, frame_identities in zip(ids, identities, strict=True):
        for i, identity in zip(frame_ids, frame_identities, strict=True):
            if identity < 0:
                continue
            if identity in last_seen:
                links += 1
                kept += last_seen[identity] == i >= 0
            last_seen[identity] = i
            if i >= 0:
                switches += last_id.get(identity, i) != i
                last_id[identity] = i
    return links, kept, switches


def test_links_equal_reference() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        identities = [rng.permutation(np.arange(-1, 4))[: rng.integers(0, 6)].tolist() for _ in range(8)]
        ids = [[i if rng.random() < 0.5 else int(rng.integers(-1, 3)) for i in frame] for frame in identities]
        result = link_accuracy(ids, identities)
        assert (result.links, result.kept, result.switches) == link_reference(ids, identities)


def test_links_by_hand() -> None:
    result = link_accuracy([[0, 1], [1, 0], [-1], [0]], [[7, 8], [7, 8], [7], [7]])
    # Object 7: 0, 1, -1, 0; object 8: 1, 0.
    assert (result.links, result.kept, result.switches, result.accuracy) == (4, 0, 3, 0.0)
    result = link_accuracy([[-1], [-1], [2]], [[7], [7], [7]])  # missed twice is not kept
    assert (result.links, result.kept, result.switches) == (2, 0, 0)
    result = link_accuracy([[0], [], [0, 5], [0, -1]], [[7], [], [7, 8], [7, 8]])
    assert (result.links, result.kept, result.switches, result.accuracy) == (3, 2, 0, pytest.approx(2 / 3))


def test_links_edges() -> None:
    for ids, identities in (([], []), ([[]], [[]]), ([[3]], [[1]]), ([[3], [3]], [[-1], [-1]])):
        result = link_accuracy(ids, identities)
        assert (result.links, result.kept, result.switches) == (0, 0, 0)
        assert math.isnan(result.accuracy)
    with pytest.raises(ValueError, match="same number"):
        link_accuracy([[1], [2]], [[1, 2], []])
