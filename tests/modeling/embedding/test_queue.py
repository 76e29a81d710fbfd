"""Negatives of past steps: against a list, and against one batch that shows everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage

from solotrack.config import ConfigError, load_config
from solotrack.data.loader import build_train_loader
from solotrack.engine.checkpoint import AtomicCheckpointer, CheckpointError
from solotrack.modeling.embedding import CenterQueue, InstanceContrastiveLoss
from tests import tiny


def test_against_a_list() -> None:
    rng = torch.Generator().manual_seed(0)
    queue, kept = CenterQueue(7, 3), []
    assert (queue.levels == -1).all()
    for count in (2, 0, 3, 4, 1, 9, 7, 5):
        centers, levels = torch.randn(count, 3, generator=rng), torch.randint(0, 3, (count,), generator=rng)
        queue.push(centers.requires_grad_(), levels)
        kept = (kept + list(zip(levels.tolist(), centers.tolist(), strict=True)))[-7:]
        filled = queue.levels >= 0
        assert sorted(zip(queue.levels[filled].tolist(), queue.centers[filled].tolist(), strict=True)) == sorted(kept)
        assert not queue.centers.requires_grad and queue.centers.dtype == torch.float32


def batch(seed: int, images: int = 4, cells: int = 13, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    index = torch.randint(-1, 3, (images, cells), generator=rng)
    return torch.randn(images, cells, dim, generator=rng), index, [torch.randperm(3, generator=rng) for _ in range(images)]


Row = tuple[int, int, int, int, torch.Tensor]  # level, picture, instance, view, center


def rows_of(embeddings: torch.Tensor, index: torch.Tensor, gt_ids: list, views: int, level_sizes: list[int], metric: str) -> list[Row]:
    """One after the other; one level pools all."""
    if metric == "cosine":
        embeddings = F.normalize(embeddings, dim=2)
    level_of = torch.arange(len(level_sizes)).repeat_interleave(torch.tensor(level_sizes))
    pictures, rows = len(index) // views, []
    for level in range(len(level_sizes)):
        for n, ids in enumerate(index):
            for i in range(3):
                cells = (ids == i) & (level_of == level)
                if cells.any():
                    instance = int(gt_ids[n][i]) if views == 2 else i
                    rows.append((level, n % pictures, instance, n // pictures, embeddings[n][cells].mean(0)))
    return rows


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("options", [{}, {"metric": "cosine", "scale": 5.0}, {"pool_levels": "per_level"}, {"null_logit": 0.5}])
def test_every_row_has_the_queue_s_entries_among_its_negatives(options: dict, scope: str, views: int) -> None:
    """The contrast loss, the null term and the entropy with a queue are those of softmaxes with more entries."""
    common = {"level_sizes": [9, 4], "scope": scope, "center_weight": 0.0, "null_weight": 1.0, "me_weight": 1.0, **options}
    metric, scale, level_sizes = options.get("metric", "dot"), options.get("scale", 1.0), [9, 4]
    if options.get("pool_levels") != "per_level":
        level_sizes = [13]
    loss = InstanceContrastiveLoss(queue=CenterQueue(9, 6), **common)
    past: list[Row] = []
    for step in range(3):
        embeddings, index, gt_ids = batch(step)
        losses = loss(embeddings.requires_grad_(), index, gt_ids, views, 0)
        (gradient,) = torch.autograd.grad(sum(losses.values()), embeddings)  # after the queue was overwritten
        plain = InstanceContrastiveLoss(**common)(embeddings, index, gt_ids, views, 0)
        expected, expected_gradient = slow(embeddings, index, gt_ids, views, past, level_sizes, metric, scale, scope, options)
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
            assert step == 0 or abs(plain[name] - value) > 1e-3
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)
        past = (past + rows_of(embeddings.detach(), index, gt_ids, views, level_sizes, metric))[-9:]


def slow(embeddings, index, gt_ids, views, past, level_sizes, metric, scale, scope, options) -> tuple[dict, torch.Tensor]:
    """Row by row in double precision."""
    exact = embeddings.detach().double().requires_grad_()
    rows = rows_of(exact, index, gt_ids, views, level_sizes, metric)

    def logit(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return scale * (a @ b if metric == "dot" else F.normalize(a, dim=0) @ F.normalize(b, dim=0))

    values: dict[str, dict] = {"loss_contrast": {}, "loss_null": {}, "loss_me": {}}
    null = options.get("null_logit")
    for r, row in enumerate(rows):
        positive, negatives = [], [logit(row[4], old[4].double()) for old in past if old[0] == row[0]]
        for o, other in enumerate(rows):
            if other[0] != row[0] or (scope == "image" and other[1] != row[1]) or (views == 2 and o == r):
                continue
            same = other[:3] == row[:3] if views == 2 else o == r
            (positive if same else negatives).append(logit(row[4], other[4]))
        extra = [] if null is None else [torch.tensor(float(null)).double()]
        total = torch.stack(positive + negatives + extra).logsumexp(0) if positive + negatives + extra else torch.tensor(0.0).double()
        key = (row[0], row[1] if scope == "image" else 0)
        if positive:
            values["loss_contrast"].setdefault(key, []).append(total - positive[0])
        level = torch.tensor(float(null or 0)).double()
        values["loss_null"].setdefault(key, []).append(torch.stack([level, *negatives]).logsumexp(0) - level)
        log_p = [n - total for n in negatives]
        values["loss_me"].setdefault(key, []).append(sum((p.exp() * p for p in log_p), exact.sum() * 0))
    seen = len({row[1] for row in rows}) if scope == "image" else 1
    losses = {name: sum(sum(group) / len(group) for group in groups.values()) / seen for name, groups in values.items()}
    (gradient,) = torch.autograd.grad(sum(losses.values()), exact)
    return {name: value.float() for name, value in losses.items()}, gradient.float()


def test_it_fills_in_training_only_and_survives_autocast() -> None:
    loss = InstanceContrastiveLoss(level_sizes=[13], queue=CenterQueue(30, 6))
    embeddings, index, gt_ids = batch(0)
    loss.eval()(embeddings, index, gt_ids, 2, 0)
    assert (loss.queue.levels == -1).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = loss.train()((embeddings * 200).bfloat16().requires_grad_(), index, gt_ids, 2, 0)
    sum(losses.values()).backward()
    assert loss.queue.centers.dtype == torch.float32 and loss.queue.centers.isfinite().all() and (loss.queue.levels == 0).sum() == 12
    nothing = [torch.zeros(0, dtype=torch.long)] * 4
    losses = loss(embeddings.requires_grad_(), torch.full_like(index, -1), nothing, 2, 0)
    assert all(value == 0 for value in losses.values()) and loss.queue.position == 12
    sum(losses.values()).backward()


QUEUE = {
    "MODEL.SOLO_TRACK.EMB.QUEUE": 20,
    "MODEL.SOLO_TRACK.EMB.VIEWS": 2,
    "MODEL.SOLO_TRACK.EMB.SIM": "cosine",
    "MODEL.SOLO_TRACK.EMB.SCOPE": "batch",
}


def test_it_travels_with_the_checkpoint(tmp_path: Path) -> None:
    model = tiny.model(tiny.config(QUEUE)).train()
    queue = model.embedding_loss.queue
    assert queue.centers.shape == (20, 8) and not hasattr(tiny.model(tiny.config()).embedding_loss.queue, "levels")
    queue.push(torch.randn(6, 8), torch.zeros(6, dtype=torch.long))
    AtomicCheckpointer(model, str(tmp_path)).save("queued")
    again = tiny.model(tiny.config(QUEUE), seed=1)
    AtomicCheckpointer(again).load_for_inference(str(tmp_path / "queued.pth"))
    assert not tiny.difference(model.state_dict(), again.state_dict())
    without = tiny.model(tiny.config())
    AtomicCheckpointer(without).load_for_inference(str(tmp_path / "queued.pth"))  # a tracker has no need of it
    AtomicCheckpointer(without, str(tmp_path)).save("plain")
    empty = tiny.model(tiny.config(QUEUE), seed=1)
    AtomicCheckpointer(empty).load_for_inference(str(tmp_path / "plain.pth"))
    assert (empty.embedding_loss.queue.levels == -1).all()
    torch.save({"model": {"other": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"No weight of .* fits"):
        AtomicCheckpointer(empty).load(str(tmp_path / "other.pth"))


def test_a_model_trains_with_it() -> None:
    cfg = tiny.config(QUEUE)
    model, loader = tiny.model(cfg).train(), iter(build_train_loader(cfg))
    with EventStorage(0):
        for filled in (False, True):
            losses = model(next(loader))
            assert bool((model.embedding_loss.queue.levels >= 0).any()) and losses["loss_contrast"].isfinite()
            sum(losses.values()).backward()
            assert filled or model.embedding_head.outputs[0].weight.grad.any()


def test_cells_have_no_queue() -> None:
    with pytest.raises(ConfigError, match=r"EMB\.QUEUE holds centers"):
        load_config("", ["MODEL.SOLO_TRACK.EMB.QUEUE", "8", "MODEL.SOLO_TRACK.EMB.LOSS", "infonce"])
