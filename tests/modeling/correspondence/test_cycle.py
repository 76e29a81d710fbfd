"""The cycle loss against walks one by one, and what it can and cannot tell (METHOD 3.3, 3.4, T9)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from solotrack.modeling.correspondence import cycle_loss


def softmax_rows(similarity: torch.Tensor, temperature: float) -> torch.Tensor:
    return (similarity / temperature).softmax(dim=1)


def reference(clips: list[list[torch.Tensor]], metric: str, temperature: float, unmatched: str, null_sim: float, palindrome: str) -> float:
    """Clip by clip in probabilities; a clip is a list of (P_t, D) without padding."""
    losses = []
    for clip in clips:
        clip = [frame.double() for frame in clip]
        if unmatched == "start_small" and len(clip[-1]) < len(clip[0]):
            clip = clip[::-1]
        for last in range(1, len(clip)) if palindrome == "all" else [len(clip) - 1]:
            walked = clip[: last + 1]
            if min(map(len, walked)) == 0 or max(map(len, walked)) == 1:
                continue
            if metric == "cosine":
                walked = [F.normalize(frame, dim=1) for frame in walked]
            way, way_back = torch.eye(len(walked[0])).double(), torch.eye(len(walked[-1])).double()
            for a, b in pairwise(walked):
                step = softmax_rows(a @ b.T, temperature)
                if unmatched == "null":
                    step = softmax_rows(torch.cat([a @ b.T, torch.full((len(a), 1), null_sim).double()], dim=1), temperature)[:, :-1]
                way = way @ step
            for a, b in reversed(list(pairwise(walked))):
                way_back = way_back @ softmax_rows(b @ a.T, temperature)
            rows = range(len(walked[0]))
            if unmatched == "null":
                rows = [i for i in rows if way[i].sum() > 0.5]
            if unmatched == "mutual":
                rows = [i for i in rows if way_back[way[i].argmax()].argmax() == i]
            if rows:
                home = way @ way_back
                losses.append(sum(-math.log(home[i, i]) for i in rows) / len(rows))
    return sum(losses) / max(len(losses), 1)


def pad(clips: list[list[torch.Tensor]], nodes: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, F, N, D) with rubbish between the nodes, and (B, F, N)."""
    frames, dim = len(clips[0]), clips[0][0].shape[1]
    embeddings = 100 * torch.randn(len(clips), frames, nodes, dim, generator=rng)
    valid = torch.zeros(len(clips), frames, nodes, dtype=torch.bool)
    for b, clip in enumerate(clips):
        for t, frame in enumerate(clip):
            places = torch.randperm(nodes, generator=rng)[: len(frame)].sort().values
            embeddings[b, t, places] = frame
            valid[b, t, places] = True
    return embeddings, valid


@pytest.mark.parametrize("frames", [2, 3, 4])
@pytest.mark.parametrize("palindrome", ["full", "all"])
@pytest.mark.parametrize("unmatched", ["none", "start_small", "null", "mutual"])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_against_walks_one_by_one(metric: str, unmatched: str, palindrome: str, frames: int) -> None:
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        counts = torch.randint(0 if seed % 2 else 1, 6, (5, frames), generator=rng).tolist()
        clips = [[torch.randn(n, 8, generator=rng) for n in clip] for clip in counts]
        embeddings, valid = pad(clips, 6, rng)
        options = {"metric": metric, "temperature": 0.5, "unmatched": unmatched, "null_sim": 0.1, "palindrome": palindrome}
        loss = cycle_loss(embeddings, valid, **options)
        assert loss.item() == pytest.approx(reference(clips, **options), abs=2e-5, rel=2e-5)


def clip_of(*frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pad([list(frames)], max(map(len, frames)), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frames", [2, 3])
def test_any_permutation_comes_home(frames: int) -> None:
    """Right or wrong, a consistent matching has no loss: the loss cannot tell (METHOD 3.4)."""
    nodes = torch.eye(5)
    loss = cycle_loss(*clip_of(*(nodes[torch.randperm(5, generator=torch.Generator().manual_seed(t))] for t in range(frames))))
    assert loss.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("there", "then"), [(5, 3), (4, 1), (7, 6)])
def test_a_lost_object_bounds_the_loss(there: int, then: int) -> None:
    bound = math.log(there / then)
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        clip = clip_of(torch.randn(there, 4, generator=rng), torch.randn(then, 4, generator=rng))
        assert cycle_loss(*clip, temperature=0.2).item() >= bound - 1e-5
    clip = clip_of(torch.eye(there), torch.eye(there)[:then])
    for unmatched in ("start_small", "null", "mutual"):
        loss = cycle_loss(*clip, unmatched=unmatched).item()
        assert loss == pytest.approx(0, abs=1e-3), f"{unmatched}: the {then} that stay come home"


def test_two_frames_have_a_gradient() -> None:
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, 2, 4, 8, generator=rng, requires_grad=True)
    cycle_loss(embeddings, torch.ones(1, 2, 4, dtype=torch.bool)).backward()
    assert (embeddings.grad.flatten(0, 2).norm(dim=1) > 0).all(), "each node of both frames, the first being the start of the walk"


def test_padding_gets_no_gradient() -> None:
    rng = torch.Generator().manual_seed(0)
    embeddings, valid = pad(
        [[torch.randn(n, 4, generator=rng) for n in (3, 2)], [torch.randn(n, 4, generator=rng) for n in (0, 2)]], 5, rng
    )
    embeddings.requires_grad_()
    cycle_loss(embeddings, valid).backward()
    assert embeddings.grad[0][valid[0]].any() and embeddings.grad[0][~valid[0]].abs().max() == 0
    assert embeddings.grad[1].abs().max() == 0, "a clip with an empty frame"


@pytest.mark.parametrize("counts", [(0, 0), (3, 0), (1, 1)])
@pytest.mark.parametrize("unmatched", ["none", "start_small", "null", "mutual"])
def test_clips_that_say_nothing(counts: tuple[int, int], unmatched: str) -> None:
    embeddings = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    valid = torch.arange(3) < torch.tensor(counts)[:, None]
    loss = cycle_loss(embeddings, valid.expand(2, 2, 3), unmatched=unmatched)
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32 and not embeddings.grad.any()


def test_hopeless_walks_still_have_finite_losses_and_gradients() -> None:
    """Probabilities of e^-200 and less, which a product of probabilities would lose."""
    nodes = torch.eye(3) * 10
    embeddings = torch.stack([nodes, nodes.roll(1, 0) + nodes.roll(1, 1)])[None].requires_grad_()
    loss = cycle_loss(embeddings, torch.ones(1, 2, 3, dtype=torch.bool), metric="dot", temperature=0.1)
    loss.backward()
    assert loss.isfinite() and embeddings.grad.isfinite().all()
    lone = torch.tensor([[[[1.0, 0], [0, 1]], [[1.0, 0], [1, 0.0]]]])  # the second node has no like
    lone.requires_grad_()
    value = cycle_loss(lone, torch.ones(1, 2, 2, dtype=torch.bool), temperature=0.002)
    value.backward()
    assert value.item() > 200 and lone.grad[0, 0, 1].any()


def test_nodes_that_do_not_exist_are_worse_than_any_that_does() -> None:
    """Dot products of embeddings that have no bounds, beside the zeros that pad them."""
    nodes = torch.stack([torch.eye(2) * 100, -torch.eye(2) * 100 - 50])[None]  # logits of -7e4 to -2e5
    padded = torch.cat([nodes, torch.zeros(1, 2, 1, 2)], dim=2)
    loss = cycle_loss(nodes, torch.ones(1, 2, 2, dtype=torch.bool), metric="dot")
    valid = torch.tensor([True, True, False]).expand(1, 2, 3)
    torch.testing.assert_close(cycle_loss(padded, valid, metric="dot"), loss)


def test_half_precision_is_compared_in_float32() -> None:
    embeddings = torch.randn(2, 2, 6, 16, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(2, 2, 6, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = cycle_loss(embeddings.bfloat16(), valid)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(cycle_loss(embeddings.bfloat16().float(), valid).item(), abs=1e-6)


def test_edge_dropout_cuts_an_edge_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a walk whose similarities are cut by hand, there and, transposed, back."""
    torch.manual_seed(1)
    nodes, drawn = F.normalize(torch.randn(1, 2, 5, 8), dim=-1), torch.rand(1, 5, 5)
    monkeypatch.setattr(torch, "rand_like", lambda similarity: drawn.expand_as(similarity))
    loss = cycle_loss(nodes, torch.ones(1, 2, 5, dtype=torch.bool), temperature=0.07, edge_dropout=0.4)
    similarity = (nodes[0, 0] @ nodes[0, 1].T / 0.07).masked_fill(drawn[0] < 0.4, -torch.inf)
    assert similarity.isinf().sum() > 0 and not similarity.isinf().all(0).any() and not similarity.isinf().all(1).any()
    home = similarity.softmax(1) @ similarity.T.softmax(1)
    assert loss.item() == pytest.approx(-home.diag().log().mean().item(), rel=1e-4)


def test_edge_dropout() -> None:
    nodes = torch.eye(6).expand(1, 2, 6, 6)
    valid = torch.ones(1, 2, 6, dtype=torch.bool)
    valid[0, :, 4:] = False
    torch.manual_seed(0)
    assert cycle_loss(nodes, valid, edge_dropout=0.3).item() > 0.1
    everything = cycle_loss(nodes, valid, edge_dropout=1.0).item()
    assert everything == pytest.approx(math.log(4)), "without any affinity the walk ends anywhere among the 4 nodes"


@pytest.mark.parametrize(
    ("options", "text"), [({"unmatched": "bin"}, "There is no mode 'bin'"), ({"palindrome": "half"}, "There is no palindrome 'half'")]
)
def test_wrong_options(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        cycle_loss(torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, dtype=torch.bool), **options)
    with pytest.raises(ValueError, match="needs 2 frames"):
        cycle_loss(torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, dtype=torch.bool))
