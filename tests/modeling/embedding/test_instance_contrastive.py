from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from detectron2.config import get_cfg

from solotrack.config import add_solotrack_config
from solotrack.modeling.embedding import InstanceContrastiveLoss

LEVEL_SIZES = [16, 9, 4]
R, D = sum(LEVEL_SIZES), 5


def random_batch(seed: int, views: int = 1) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Six images (three pictures in two views) with 0 to 5 ground truths of non-consecutive ids, some without a cell, some with one."""
    rng = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(6, R, D, generator=rng)
    if views == 1:
        gt_ids = [torch.tensor(ids, dtype=torch.long) for ids in ([], [3], [0, 2], [5, 1, 0], [7, 8, 9, 2], [4, 0, 1, 6, 2])]
    else:  # picture 0: 3 of 4 in both views, in another order; picture 1: nothing in common; picture 2: one instance, in both
        gt_ids = [torch.tensor(ids) for ids in ([0, 1, 2, 5], [4, 3], [2], [5, 0, 1, 7], [0], [2])]
    index = torch.full((6, R), -1)
    for n, ids in enumerate(gt_ids):
        count = len(ids)
        if count > 2:  # the last has no cell, the one before it exactly one
            index[n] = torch.randint(-count, count - 2, (R,), generator=rng).clamp(min=-1)
            index[n, 3] = count - 2
        elif count:
            index[n] = torch.randint(-2, count, (R,), generator=rng).clamp(min=-1)
            index[n, :count] = torch.arange(count)
    return embeddings, index, gt_ids


def reference(
    embeddings: torch.Tensor,
    index: torch.Tensor,
    gt_ids: list[torch.Tensor],
    views: int,
    *,
    pool_levels: str = "all",
    metric: str = "dot",
    scale: float = 1.0,
    scope: str = "image",
    null_logit: float | None = None,
    center_reduction: str = "mean",
    center_type: str = "l1",
    center_detach: bool = False,
    null_weight: float = 0.0,
    me_mode: str = "paper",
) -> dict[str, torch.Tensor]:
    """The equations of the paper and of METHOD 2 written out, unweighted, one instance, one pair, one cell at a time."""
    zero = embeddings.sum() * 0
    level_of = [level for level, size in enumerate(LEVEL_SIZES) for _ in range(size)]
    cells = defaultdict(list)  # (level, image, place among the ground truths) -> embeddings
    for n in range(len(gt_ids)):
        for r in range(R):
            if index[n, r] >= 0:
                f = embeddings[n, r] / embeddings[n, r].norm() if metric == "cosine" else embeddings[n, r]
                cells[level_of[r] if pool_levels == "per_level" else 0, n, int(index[n, r])].append(f)
    centers = {key: sum(members) / len(members) for key, members in cells.items()}
    levels = sorted({level for level, _, _ in centers})

    def mean(values: list[torch.Tensor]) -> torch.Tensor:
        return sum(values) / len(values) if values else zero

    # eq (2)
    def instance_center_loss(key: tuple[int, int, int]) -> torch.Tensor:
        total, center = zero, centers[key].detach() if center_detach else centers[key]
        for f in cells[key]:
            for d in range(D):
                difference = (f[d] - center[d]).abs()
                if center_type == "smooth_l1":
                    difference = 0.5 * difference**2 if difference < 1 else difference - 0.5
                total = total + difference
        return total if center_reduction == "sum" else total / (len(cells[key]) * D)

    per_image = []
    for n in sorted({image for _, image, _ in centers}):
        per_level = []
        for level in levels:
            values = [instance_center_loss(key) for key in centers if key[:2] == (level, n)]
            per_level.append(sum(values, zero) if center_reduction == "sum" else mean(values))
        per_image.append(sum(per_level))
    losses = {"loss_center": mean(per_image)}

    # eqs (3), (4), (6) and the leave-one-out term, row by row
    half = len(gt_ids) // views

    def picture(key: tuple[int, int, int]) -> int:
        return key[1] % half

    def identity(key: tuple[int, int, int]) -> tuple[int, int, int]:
        return key[0], picture(key), int(gt_ids[key[1]][key[2]])

    def logit(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return scale * (a @ b if metric == "dot" else a @ b / (a.norm() * b.norm()))

    rows: dict[str, dict[tuple[int, int, int], torch.Tensor]] = defaultdict(dict)
    for i in centers:
        in_scope = [j for j in centers if j[0] == i[0] and (scope != "image" or picture(j) == picture(i))]
        if views == 1:
            candidates, positive = in_scope, i
        else:
            candidates = [j for j in in_scope if j != i]
            positive = next((j for j in candidates if identity(j) == identity(i)), None)
        negatives = [j for j in candidates if j != positive]
        e = {j: logit(centers[i], centers[j]).exp() for j in candidates}
        denominator = sum(e.values(), zero) + (0 if null_logit is None else torch.tensor(null_logit).double().exp())
        if positive is not None:
            rows["loss_contrast"][i] = -torch.log(e[positive] / denominator)
        null = torch.tensor(null_logit or 0.0).double().exp()
        rows["loss_null"][i] = -torch.log(null / (null + sum((e[j] for j in negatives), zero)))
        if me_mode == "offdiag":
            noise = sum((e[j] for j in negatives), zero)
            entropy = zero - sum(((e[j] / noise) * torch.log(e[j] / noise) for j in negatives), zero)
            rows["loss_me"][i] = -entropy / torch.tensor(len(negatives)).double().log() if len(negatives) > 1 else zero
        elif me_mode != "none":
            entropy = zero - sum(((e[j] / denominator) * torch.log(e[j] / denominator) for j in negatives), zero)
            rows["loss_me"][i] = entropy if me_mode == "minimize" else -entropy

    pictures = sorted({picture(key) for key in centers})
    for term in ("loss_contrast", "loss_null", "loss_me"):
        values = rows[term]
        if scope == "image":
            sums = [sum(mean([values[i] for i in values if i[0] == level and picture(i) == p]) for level in levels) for p in pictures]
            losses[term] = mean(sums)
        else:
            losses[term] = sum((mean([values[i] for i in values if i[0] == level]) for level in levels), zero)
    if me_mode == "none":
        del losses["loss_me"]
    if not null_weight:
        del losses["loss_null"]
    return losses


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(losses.values())


KNOBS = [
    {},
    {"pool_levels": "per_level"},
    {"center_reduction": "sum"},
    {"center_reduction": "sum", "pool_levels": "per_level"},
    {"center_type": "smooth_l1"},
    {"center_detach": True},
    {"scale": 0.4},
    {"null_logit": 0.0},
    {"null_logit": 1.5, "null_weight": 1.0},
    {"null_weight": 1.0},
    {"null_weight": 1.0, "pool_levels": "per_level"},
    {"scope": "batch", "null_weight": 1.0},
    {"scope": "gather", "null_weight": 1.0},  # one process: the batch
    {"scope": "batch", "pool_levels": "per_level", "me_mode": "offdiag"},
    {"me_mode": "none"},
    {"me_mode": "minimize"},
    {"me_mode": "offdiag"},
    {"me_mode": "offdiag", "scope": "batch"},
    {"me_mode": "paper", "null_logit": 0.5},
    {"metric": "cosine", "scale": 10.0, "null_weight": 1.0},
    {"metric": "cosine", "scale": 10.0, "scope": "batch", "me_mode": "offdiag", "center_type": "smooth_l1"},
]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: ",".join(f"{k}={v}" for k, v in knobs.items()) or "defaults")
def test_values_and_gradients_equal_the_equations(knobs: dict[str, object], views: int) -> None:
    embeddings, index, gt_ids = random_batch(seed=len(str(knobs)), views=views)
    embeddings.requires_grad_()
    losses = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, me_weight=1.0, **knobs)(embeddings, index, gt_ids, views, 0)
    exact = embeddings.detach().double().requires_grad_()
    expected = reference(exact, index, gt_ids, views, **{"me_mode": "paper", **knobs})
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].double(), value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        (fast,) = torch.autograd.grad(losses[name], embeddings, retain_graph=True)
        (slow,) = torch.autograd.grad(value, exact, retain_graph=True)
        torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=2e-6, msg=lambda m, name=name: f"gradient of {name}: {m}")
        # only the centers' loss can vanish here (all centers detached or of one cell); it does not
        assert slow.abs().sum() > 0


def test_weights_multiply_their_terms() -> None:
    batch = random_batch(0)
    plain = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, null_weight=1.0, me_weight=1.0)(*batch, 1, 0)
    weights = {"loss_weight": 2.0, "center_weight": 3.0, "contrast_weight": 5.0, "null_weight": 7.0, "me_weight": 0.5}
    weighted = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, **weights)(*batch, 1, 0)
    factors = {"loss_center": 6.0, "loss_contrast": 10.0, "loss_null": 14.0, "loss_me": 1.0}
    assert plain.keys() == weighted.keys() == factors.keys()
    for name, factor in factors.items():
        torch.testing.assert_close(weighted[name], factor * plain[name])


def test_only_terms_switched_on_are_returned() -> None:
    batch = random_batch(0)

    def names(iteration: int = 0, **options: object) -> set[str]:
        return set(InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, **options)(*batch, 1, iteration))

    assert names(me_start_iter=10, iteration=9) == {"loss_center", "loss_contrast"}
    assert names(me_start_iter=10, iteration=10) == {"loss_center", "loss_contrast", "loss_me"}
    assert names(me_weight=0.0, center_weight=0.0) == {"loss_contrast"}
    assert names(me_mode="none", contrast_weight=0.0) == {"loss_center"}
    assert names(me_mode="none", null_weight=0.1) == {"loss_center", "loss_contrast", "loss_null"}
    assert names(me_mode="none", loss="infonce") == {"loss_infonce"}
    assert names(null_weight=1.0, loss="infonce") == {"loss_infonce", "loss_null", "loss_me"}


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_the_order_of_instances_and_of_pictures_does_not_matter(views: int, metric: str) -> None:
    embeddings, index, gt_ids = random_batch(1, views)
    loss = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, null_weight=1.0, metric=metric)
    expected = loss(embeddings, index, gt_ids, views, 0)

    rng = torch.Generator().manual_seed(2)
    new_index, new_ids = index.clone(), []
    for n, ids in enumerate(gt_ids):
        order = torch.randperm(len(ids), generator=rng)
        new_ids.append(ids[order])
        for new, old in enumerate(order.tolist()):
            new_index[n][index[n] == old] = new
    pictures = [2, 0, 1] if views == 2 else [4, 2, 0, 5, 1, 3]
    images = pictures + [p + 3 for p in pictures] if views == 2 else pictures
    result = loss(embeddings[images], new_index[images], [new_ids[n] for n in images], views, 0)
    for name in expected:
        torch.testing.assert_close(result[name], expected[name])


@pytest.mark.parametrize("options", [{}, {"loss": "infonce"}, {"scope": "batch"}, {"pool_levels": "per_level"}, {"metric": "cosine"}])
@pytest.mark.parametrize("views", [1, 2])
def test_no_instance_is_a_zero_with_a_graph(options: dict[str, object], views: int) -> None:  # T5
    embeddings = torch.randn(2, R, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    none = torch.zeros(0, dtype=torch.long)
    loss = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, null_weight=1.0, **options)
    for gt_ids in ([none, none], [torch.tensor([0, 1]), none]):  # nothing in the image, or nothing with a cell
        losses = loss(embeddings, torch.full((2, R), -1), gt_ids, views, 0)
        assert all(value == 0 for value in losses.values())
        (gradient,) = torch.autograd.grad(total(losses), embeddings)
        assert gradient.abs().sum() == 0


def test_single_instance_images_count_in_the_average() -> None:  # T5, METHOD 2.6
    embeddings, index, gt_ids = random_batch(3)
    loss = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, me_mode="none", center_weight=0.0)
    alone = loss(embeddings[4:5], index[4:5], gt_ids[4:5], 1, 0)["loss_contrast"]
    single = loss(embeddings[1:2], index[1:2], gt_ids[1:2], 1, 0)["loss_contrast"]
    pair = loss(embeddings[[0, 1, 4]], index[[0, 1, 4]], [gt_ids[n] for n in (0, 1, 4)], 1, 0)["loss_contrast"]
    assert single == 0
    assert alone > 0
    torch.testing.assert_close(pair, alone / 2)  # images 1 and 4; image 0 has no instance


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"scope": "batch"}, {"loss": "infonce"}, {"metric": "cosine"}, {"me_mode": "offdiag"}])
def test_half_precision_embeddings_of_200_inside_autocast(dtype: torch.dtype, options: dict[str, object]) -> None:  # T8
    rng = torch.Generator().manual_seed(0)
    embeddings = (torch.randn(2, R, 256, generator=rng) * 200).to(dtype).requires_grad_()
    index = torch.randint(-1, 6, (2, R), generator=rng)
    gt_ids = [torch.arange(6)] * 2
    loss = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, null_weight=1.0, **options)
    with torch.autocast("cpu", dtype=dtype):
        losses = loss(embeddings, index, gt_ids, 1, 0)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    total(losses).backward()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad.abs().sum() > 0
    exact = loss(embeddings.detach().float(), index, gt_ids, 1, 0)
    for name, value in losses.items():
        torch.testing.assert_close(value, exact[name])


def test_two_hundred_instances() -> None:
    rng = torch.Generator().manual_seed(0)
    embeddings = (10 * torch.randn(1, 1600, 32, generator=rng)).requires_grad_()
    loss = InstanceContrastiveLoss(level_sizes=[1600], null_weight=1.0)
    losses = loss(embeddings, torch.randint(-1, 200, (1, 1600), generator=rng), [torch.arange(200)], 1, 0)
    total(losses).backward()
    assert all(value.isfinite() for value in losses.values())
    assert embeddings.grad.isfinite().all()


def test_cosine_does_not_see_the_length_of_an_embedding() -> None:
    embeddings, index, gt_ids = random_batch(5)
    lengths = torch.rand(6, R, 1, generator=torch.Generator().manual_seed(6)) * 50 + 0.1
    loss = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, metric="cosine", scale=10.0, null_weight=1.0)
    expected = loss(embeddings, index, gt_ids, 1, 0)
    result = loss(embeddings * lengths, index, gt_ids, 1, 0)
    for name in expected:
        torch.testing.assert_close(result[name], expected[name])
    assert expected["loss_center"] > 0


def test_two_views_by_hand() -> None:
    """Instance 0 in both views, instance 1 in the first only: it is a negative, and has no row of its own in the contrast."""
    vectors = {"a1": [1.0, 0.0], "b1": [0.0, 2.0], "a2": [3.0, 1.0]}
    embeddings = torch.zeros(2, 4, 2)
    embeddings[0, 0], embeddings[0, 2] = torch.tensor(vectors["a1"]), torch.tensor(vectors["b1"])
    embeddings[1, 3] = torch.tensor(vectors["a2"])
    index = torch.tensor([[0, -1, 1, -1], [-1, -1, -1, 0]])
    loss = InstanceContrastiveLoss(level_sizes=[4], null_weight=1.0, me_weight=1.0)
    losses = loss(embeddings, index, [torch.tensor([0, 1]), torch.tensor([0])], 2, 0)
    a1b1, a1a2, b1a2 = torch.tensor(0.0), torch.tensor(3.0), torch.tensor(2.0)
    softplus = torch.nn.functional.softplus
    torch.testing.assert_close(losses["loss_contrast"], (softplus(a1b1 - a1a2) + softplus(b1a2 - a1a2)) / 2)
    of_b1 = torch.log(1 + a1b1.exp() + b1a2.exp())
    torch.testing.assert_close(losses["loss_null"], (softplus(a1b1) + of_b1 + softplus(b1a2)) / 3)

    def entropy(*p: torch.Tensor) -> torch.Tensor:
        return -sum(x * x.log() for x in p)

    in_a1, in_b1, in_a2 = torch.sigmoid(a1b1 - a1a2), torch.sigmoid(a1b1 - b1a2), torch.sigmoid(b1a2 - a1a2)
    torch.testing.assert_close(losses["loss_me"], -(entropy(in_a1) + entropy(in_b1, 1 - in_b1) + entropy(in_a2)) / 3)
    assert losses["loss_center"] == 0


def test_two_views_of_infonce_compare_cells_across_views() -> None:
    embeddings, index, gt_ids = random_batch(7, views=2)
    loss = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, loss="infonce", me_mode="none")
    result = loss(embeddings, index, gt_ids, 2, 0)["loss_infonce"]
    # the same as one image that shows both views' cells side by side, with the ids as instances
    ids = torch.stack([torch.cat([gt, torch.tensor([-1])])[index[n]] for n, gt in enumerate(gt_ids)])
    wide = InstanceContrastiveLoss(level_sizes=[2 * R], loss="infonce", me_mode="none")
    expected = wide(torch.cat([embeddings[:3], embeddings[3:]], 1), torch.cat([ids[:3], ids[3:]], 1), [torch.arange(8)] * 3, 1, 0)
    torch.testing.assert_close(result, expected["loss_infonce"])


@pytest.mark.parametrize("views", [1, 2])
def test_an_instance_in_several_places_has_one_center(views: int) -> None:
    embeddings, index, gt_ids = random_batch(11, views)
    twice = [torch.cat([ids, ids.flip(0)]) for ids in gt_ids]  # each ground truth once more, under the same id
    number = torch.tensor([len(ids) for ids in gt_ids])[:, None]
    second = torch.rand(index.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    spread = torch.where(second & (index >= 0), 2 * number - 1 - index, index)  # about half of the cells belong to the second
    assert (spread != index).any()
    loss = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, null_weight=1.0)
    one, two = (loss(embeddings, cells, ids, views, 0) for cells, ids in ((index, gt_ids), (spread, twice)))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value)


def test_two_views_need_pairs() -> None:
    for name in ("center_contra", "infonce"):
        loss = InstanceContrastiveLoss(level_sizes=LEVEL_SIZES, loss=name)
        with pytest.raises(ValueError, match=r"even number of images.*got 3"):
            loss(torch.zeros(3, R, D), torch.full((3, R), -1), [torch.zeros(0)] * 3, 2, 0)


def test_from_config_reads_every_knob() -> None:
    cfg = get_cfg()
    add_solotrack_config(cfg)
    default = InstanceContrastiveLoss(cfg)
    assert sum(default.level_sizes) == 3872
    assert (default.metric, default.scale, default.scope, default.null_logit, default.per_level) == ("dot", 1.0, "image", None, False)
    assert (default.me_mode, default.me_weight, default.me_start_iter, default.null_weight) == ("paper", 0.1, 1000, 0.0)
    cfg.MODEL.SOLO.NUM_GRIDS = [3, 2]
    emb, me = cfg.MODEL.SOLO_TRACK.EMB, cfg.MODEL.SOLO_TRACK.ME
    emb.SIM, emb.TEMPERATURE, emb.NULL_LOGIT, emb.LOO_NULL, emb.SCOPE, emb.POOL_LEVELS = "cosine", 0.1, 2.0, 0.5, "batch", "per_level"
    emb.CENTER_REDUCTION, emb.CENTER_TYPE, emb.CENTER_DETACH = "sum", "smooth_l1", True
    emb.CENTER_WEIGHT, emb.LAMBDA, emb.LOSS_WEIGHT = 0.25, 3.0, 4.0
    me.MODE, me.WEIGHT, me.START_ITER = "offdiag", 0.2, 7
    loss = InstanceContrastiveLoss(cfg)
    assert loss.level_sizes == [9, 4]
    assert (loss.metric, loss.scale, loss.scope, loss.null_logit, loss.per_level) == ("cosine", 10.0, "batch", 2.0, True)
    assert (loss.center_reduction, loss.center_type, loss.center_detach) == ("sum", "smooth_l1", True)
    assert (loss.loss_weight, loss.center_weight, loss.contrast_weight, loss.null_weight) == (4.0, 0.25, 3.0, 0.5)
    assert (loss.me_mode, loss.me_weight, loss.me_start_iter) == ("offdiag", 0.2, 7)
    cfg.MODEL.SOLO_TRACK.EMB.LOSS = "infonce"
    assert InstanceContrastiveLoss(cfg).loss == "infonce"
