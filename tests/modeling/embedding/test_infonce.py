from __future__ import annotations

import math

import pytest
import torch

from solotrack.modeling.embedding.infonce import info_nce_loss


def reference(features: torch.Tensor, images: torch.Tensor, instances: torch.Tensor, metric: str, scale: float) -> torch.Tensor:
    """Eq (1) cell by cell."""

    def logit(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return scale * (a @ b if metric == "dot" else a @ b / (a.norm() * b.norm()))

    per_image = []
    for image in sorted(set(images.tolist())):
        cells = [c for c in range(len(images)) if images[c] == image]
        per_query = []
        for q in cells:
            positives = [p for p in cells if p != q and instances[p] == instances[q]]
            negatives = [k for k in cells if instances[k] != instances[q]]
            if not positives:
                continue
            noise = sum((logit(features[k], features[q]).exp() for k in negatives), torch.zeros((), dtype=features.dtype))
            terms = [-torch.log(logit(features[p], features[q]).exp() / (logit(features[p], features[q]).exp() + noise)) for p in positives]
            per_query.append(sum(terms) / len(terms))
        per_image.append(sum(per_query) / len(per_query) if per_query else features.sum() * 0)
    return sum(per_image) / len(per_image)


def test_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    images, instances = torch.tensor([0, 0, 0]), torch.tensor([0, 0, 1])
    # queries 0 and 1: positive 2, one negative 0; the lone cell of instance 1 has no positive
    loss = info_nce_loss(features, images, instances, num_images=1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize(("metric", "scale"), [("dot", 1.0), ("dot", 0.5), ("cosine", 5.0)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_loop_over_pairs(metric: str, scale: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(14, 4, generator=rng).requires_grad_()
    images = torch.randint(0, 3, (14,), generator=rng)  # not in order, as with two views
    images[images == 1] = 3  # an image without cells
    instances = torch.randint(0, 3, (14,), generator=rng)
    loss = info_nce_loss(features, images, instances, num_images=5, metric=metric, scale=scale)
    loss.backward()
    exact = features.detach().double().requires_grad_()
    expected = reference(exact, images, instances, metric, scale)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cells", [0, 1, 2])
def test_one_instance_or_none_is_zero_with_a_graph(cells: int) -> None:
    features = torch.ones(cells, 4, requires_grad=True)
    loss = info_nce_loss(features, torch.zeros(cells, dtype=torch.long), torch.zeros(cells, dtype=torch.long), num_images=2)
    loss.backward()
    assert loss.item() == 0.0
    assert features.grad.abs().sum() == 0


def test_finite_for_large_features() -> None:
    features = (torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) * 200).half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce_loss(features, torch.zeros(40, dtype=torch.long), torch.arange(40) // 4, num_images=1)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert features.grad.isfinite().all()
    assert features.grad.abs().sum() > 0
