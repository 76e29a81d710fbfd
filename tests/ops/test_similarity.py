from __future__ import annotations

import math

import pytest
import torch

from solotrack.ops.similarity import pairwise_similarity


@pytest.mark.parametrize("metric", ["dot", "cosine"])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_equals_a_loop_over_pairs(metric: str, scale: float) -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 6, generator=rng), torch.randn(3, 6, generator=rng)
    result = pairwise_similarity(a, b, metric, scale)
    assert result.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            x, y = a[i].tolist(), b[j].tolist()
            dot = sum(p * q for p, q in zip(x, y, strict=True))
            norms = math.sqrt(sum(p * p for p in x)) * math.sqrt(sum(q * q for q in y))
            expected = scale * (dot if metric == "dot" else dot / norms)
            assert result[i, j].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_hand_computed() -> None:
    a, b = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, -1.0]])
    assert pairwise_similarity(a, b).tolist() == [[6.0, -4.0]]
    torch.testing.assert_close(pairwise_similarity(a, b, "cosine", 10.0), torch.tensor([[6.0, -8.0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_float32_inside_autocast(dtype: torch.dtype) -> None:
    a = torch.full((2, 256), 200.0, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        result = pairwise_similarity(a, a)
    assert result.dtype == torch.float32
    assert result.tolist() == [[200.0 * 200.0 * 256] * 2] * 2  # far beyond float16


def test_leading_dimensions_are_batches() -> None:
    rng = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 3, 5, generator=rng), torch.randn(2, 4, 5, generator=rng)
    result = pairwise_similarity(a, b, "cosine")
    for n in range(2):
        torch.testing.assert_close(result[n], pairwise_similarity(a[n], b[n], "cosine"))


def test_zero_vectors_have_cosine_zero_and_finite_gradients() -> None:
    a = torch.zeros(1, 4, requires_grad=True)
    result = pairwise_similarity(a, torch.eye(4), "cosine")
    result.sum().backward()
    assert result.tolist() == [[0.0] * 4]
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_empty_sets(n: int, m: int) -> None:
    for metric in ("dot", "cosine"):
        assert pairwise_similarity(torch.zeros(n, 4), torch.zeros(m, 4), metric).shape == (n, m)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'euclid'.*'dot', 'cosine'"):
        pairwise_similarity(torch.zeros(1, 4), torch.zeros(1, 4), "euclid")
    with pytest.raises(ValueError, match="4 and 5"):
        pairwise_similarity(torch.zeros(1, 4), torch.zeros(1, 5))
