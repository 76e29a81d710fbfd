"""Pseudo identities against loops over nodes, and what counts as a link and as a negative."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from solotrack.modeling.correspondence import confident_links, pseudo_identity_loss, track_labels

OPTIONS = {"metric": "cosine", "temperature": 0.2, "null_sim": 0.3, "thresh": 0.3}


def clips(seed: int, count: int = 4, frames: int = 3, nodes: int = 5, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Objects that look alike from frame to frame, in another order, some missing; rubbish where there is no node."""
    rng = torch.Generator().manual_seed(seed)
    looks = torch.randn(count, 1, nodes, dim, generator=rng)
    embeddings = looks + 0.3 * torch.randn(count, frames, nodes, dim, generator=rng)
    order = torch.rand(count, frames, nodes, generator=rng).argsort(dim=2)
    embeddings = embeddings.gather(2, order[..., None].expand(-1, -1, -1, dim))
    valid = torch.rand(count, frames, nodes, generator=rng) < 0.8
    return torch.where(valid[..., None], embeddings, 100 * torch.randn(embeddings.shape, generator=rng)), valid


def slow_links(embeddings: torch.Tensor, valid: torch.Tensor, metric: str, temperature: float, null_sim: float, thresh: float) -> list:
    """[(clip, frame, i, j)], j in the next frame."""
    links = []
    for b in range(len(valid)):
        for t in range(valid.shape[1] - 1):
            rows, columns = valid[b, t].nonzero()[:, 0].tolist(), valid[b, t + 1].nonzero()[:, 0].tolist()

            def similarity(i: int, j: int, b: int = b, t: int = t) -> float:
                x, y = embeddings[b, t, i].double(), embeddings[b, t + 1, j].double()
                return float(x @ y / (x.norm() * y.norm() if metric == "cosine" else 1)) / temperature

            null = math.exp(null_sim / temperature)
            for i in rows:
                for j in columns:
                    there = math.exp(similarity(i, j)) / (null + sum(math.exp(similarity(i, k)) for k in columns))
                    back = math.exp(similarity(i, j)) / (null + sum(math.exp(similarity(k, j)) for k in rows))
                    nearest = all(similarity(i, j) >= similarity(i, k) for k in columns) and all(
                        similarity(i, j) >= similarity(k, j) for k in rows
                    )
                    if nearest and there * back > thresh:
                        links.append((b, t, i, j))
    return links


@pytest.mark.parametrize("thresh", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_links_against_loops(metric: str, thresh: float) -> None:
    total = 0
    for seed in range(4):
        embeddings, valid = clips(seed)
        options = OPTIONS | {"metric": metric, "thresh": thresh, "temperature": 0.2 if metric == "cosine" else 2.0}
        links = confident_links(embeddings, valid, **options)
        assert links.shape == (4, 2, 5, 5) and links.sum(dim=2).max() <= 1 and links.sum(dim=3).max() <= 1
        expected = slow_links(embeddings, valid, **options)
        assert sorted(map(tuple, links.nonzero().tolist())) == sorted(expected)
        total += len(expected)
    assert total > 20


def slow_loss(embeddings, valid, links, videos, metric: str, scale: float) -> torch.Tensor:
    """Node by node; tracks are grown link by link."""
    nodes = [tuple(place) for place in valid.nonzero().tolist()]
    track = {place: {place} for place in nodes}
    for b, t, i, j in links.nonzero().tolist():
        joined = track[b, t, i] | track[b, t + 1, j]
        for place in joined:
            track[place] = joined

    def similarity(a: tuple, b: tuple) -> torch.Tensor:
        x, y = embeddings[a], embeddings[b]
        return scale * (x @ y if metric == "dot" else F.normalize(x, dim=0) @ F.normalize(y, dim=0))

    values = []
    for a in nodes:
        shown = {t for _, t, _ in track[a]}
        negatives = [n for n in nodes if n[0] == a[0] and n not in track[a] and n[1] in shown]
        negatives += [n for n in nodes if videos[n[0]] != videos[a[0]]]
        noise = sum((similarity(a, n).exp() for n in negatives), embeddings.sum() * 0)
        own = [similarity(a, p).exp() for p in track[a] if p != a]
        if own:
            values.append(sum(-torch.log(e / (e + noise)) for e in own) / len(own))
    return sum(values) / len(values) if values else embeddings.sum() * 0


@pytest.mark.parametrize(("metric", "scale"), [("cosine", 5.0), ("dot", 0.5)])
@pytest.mark.parametrize("frames", [2, 3, 4])
@pytest.mark.parametrize("videos", [[0, 1, 2, 3], [0, 1, 0, 2], [0, 0, 0, 0]])
def test_loss_and_gradient_against_loops(videos: list[int], frames: int, metric: str, scale: float) -> None:
    embeddings, valid = clips(frames, frames=frames, nodes=4)
    links = confident_links(embeddings, valid, **OPTIONS)
    ours, exact = embeddings.clone().requires_grad_(), embeddings.double().requires_grad_()
    loss = pseudo_identity_loss(ours, valid, links, torch.tensor(videos), metric=metric, scale=scale)
    expected = slow_loss(exact, valid, links, videos, metric, scale)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    (fast,), (slow,) = torch.autograd.grad(loss, ours), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-3, atol=1e-6)
    assert loss > 0 and fast[valid].any() and not fast[~valid].any()


def test_tracks_over_several_frames() -> None:
    links = torch.zeros(1, 3, 3, 3, dtype=torch.bool)
    links[0, 0, 0, 2] = links[0, 1, 2, 1] = links[0, 2, 0, 0] = True  # node 0 -> 2 -> 1, and one that appears in the third frame
    labels = track_labels(links)[0].tolist()
    assert labels[0][0] == labels[1][2] == labels[2][1] and labels[2][0] == labels[3][0]
    assert len({x for frame in labels for x in frame}) == 12 - 3


def test_a_lone_object_is_no_sure_partner() -> None:
    """Without a dust bin, the one node of a frame would get every step."""
    a, b = torch.eye(2)
    for other, linked in ((a, True), (b, False)):
        embeddings, valid = torch.stack([a, other])[None, :, None], torch.ones(1, 2, 1, dtype=torch.bool)
        assert bool(confident_links(embeddings, valid, metric="cosine", temperature=0.07, null_sim=0.3, thresh=0.5).any()) == linked


def test_an_object_that_leaves_and_one_that_comes_are_two() -> None:
    looks = torch.eye(4)
    embeddings = torch.stack([looks[:3], looks[[0, 1, 3]]])[None]
    links = confident_links(embeddings, torch.ones(1, 2, 3, dtype=torch.bool), metric="cosine", temperature=0.07, null_sim=0.3, thresh=0.5)
    assert links[0, 0].nonzero().tolist() == [[0, 0], [1, 1]]


def test_nodes_of_frames_without_the_track_are_no_negatives() -> None:
    """Two objects; in the third frame one node, which nothing is linked to: it may be either."""
    embeddings = torch.eye(3).expand(1, 3, 3, 3).clone().requires_grad_()
    valid = torch.tensor([[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]).bool()
    links = confident_links(embeddings, valid, **OPTIONS)
    assert links.sum() == 2
    loss = pseudo_identity_loss(embeddings, valid, links, torch.tensor([0]), metric="cosine", scale=5.0)
    # each of the four has its like (similarity 5) and two others (similarity 0)
    assert loss.item() == pytest.approx(math.log1p(2 * math.exp(-5)))


@pytest.mark.parametrize("shown", [0, 1])
def test_nothing_linked_is_a_zero_with_a_graph(shown: int) -> None:
    embeddings = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    valid = torch.zeros(2, 2, 3, dtype=torch.bool)
    valid[:, 0, :shown] = True  # no node at all, or none in the second frame
    links = confident_links(embeddings, valid, **OPTIONS)
    loss = pseudo_identity_loss(embeddings, valid, links, torch.tensor([0, 1]), metric="cosine", scale=10.0)
    loss.backward()
    assert not links.any() and loss.item() == 0 and loss.dtype == torch.float32 and not embeddings.grad.any()


def test_half_precision_and_large_embeddings() -> None:
    embeddings, valid = clips(0)
    half = (200 * embeddings).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        links = confident_links(half, valid, **OPTIONS)
        loss = pseudo_identity_loss(half, valid, links, torch.arange(4), metric="dot", scale=1.0)
    loss.backward()
    assert links.any() and loss.isfinite() and loss.dtype == torch.float32 and half.grad.isfinite().all()
