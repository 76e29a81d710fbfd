from __future__ import annotations

import math

import pytest
import torch

from solotrack.modeling.embedding.comparison import Comparison
from solotrack.modeling.embedding.contrast_loss import contrast_loss, row_log_softmax
from solotrack.modeling.embedding.loo_null_loss import loo_null_loss
from solotrack.ops.similarity import pairwise_similarity


def one_image(logits: torch.Tensor) -> Comparison:
    """The literal comparison of the K instances of one image."""
    k = len(logits)
    return Comparison(logits, torch.ones(k, k, dtype=torch.bool), torch.eye(k, dtype=torch.bool), torch.zeros(k, dtype=torch.long), 1, 1)


def test_by_hand() -> None:
    comparison = one_image(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    first, second = math.log(1 + math.exp(-2)), math.log(2)
    assert contrast_loss(comparison).item() == pytest.approx((first + second) / 2)
    # a null entry of 1.0: e^2 / (e^2 + e^0 + e^1) and e^1 / 3e^1
    first = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(1)))
    assert contrast_loss(comparison, null_logit=1.0).item() == pytest.approx((first + math.log(3)) / 2)
    # leave one out: only the off-diagonal entries 0 and 1 against a null of 0, then of 1
    assert loo_null_loss(comparison).item() == pytest.approx((math.log(2) + math.log(1 + math.e)) / 2)
    assert loo_null_loss(comparison, 1.0).item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)


def test_orthogonal_and_identical_centers() -> None:  # T6
    k = 5
    identical = torch.ones(k, 8)
    assert contrast_loss(one_image(pairwise_similarity(identical, identical))).item() == pytest.approx(math.log(k))
    orthogonal = 4 * torch.eye(k)
    expected = math.log(1 + (k - 1) * math.exp(-16))
    assert contrast_loss(one_image(pairwise_similarity(orthogonal, orthogonal))).item() == pytest.approx(expected, abs=1e-7)


def test_one_instance_is_exactly_zero() -> None:  # T5
    logits = torch.tensor([[7.0]], requires_grad=True)
    for loss in (contrast_loss(one_image(logits)), loo_null_loss(one_image(logits))):
        logits.grad = None
        loss.backward()
        assert loss.item() == 0.0
        assert logits.grad.item() == 0.0
    assert contrast_loss(one_image(logits), null_logit=0.0).item() == pytest.approx(math.log(1 + math.exp(-7)), rel=1e-3)


@pytest.mark.parametrize("k", [0, 1, 200])
@pytest.mark.parametrize("null_logit", [None, 0.0])
def test_finite_for_logits_of_thousands(k: int, null_logit: float | None) -> None:  # T5, T8
    logits = (torch.randn(k, k, generator=torch.Generator().manual_seed(0)) * 5000).requires_grad_()
    loss = contrast_loss(one_image(logits), null_logit) + loo_null_loss(one_image(logits))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_rows_are_normalised_over_candidates_only() -> None:
    comparison = one_image(torch.tensor([[1.0, 2.0, 50.0], [0.0, 0.0, 50.0], [9.0, 9.0, 9.0]]))
    candidates = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    s = row_log_softmax(comparison._replace(candidates=candidates)).exp()
    torch.testing.assert_close(s.sum(dim=1), torch.ones(3))
    assert (s[~candidates] == 0).all()
    assert s[1].tolist() == [0.5, 0.5, 0.0]


def test_leave_one_out_fixes_the_level_of_the_logits() -> None:
    """METHOD 2.5: a common part of norm 3 keeps all similarities large under eq (4) alone, and goes with the null term."""
    start = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)) * 0.3
    common = torch.zeros(32)
    common[0] = 3.0

    def trained(null_weight: float) -> torch.Tensor:
        vectors = (start + common).requires_grad_()
        optimizer = torch.optim.SGD([vectors], lr=0.1)
        for _ in range(800):
            comparison = one_image(pairwise_similarity(vectors, vectors))
            loss = contrast_loss(comparison) + null_weight * loo_null_loss(comparison)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return comparison.logits.detach()

    off_diagonal = ~torch.eye(6, dtype=torch.bool)
    literal, with_null = trained(0.0), trained(1.0)
    assert literal[off_diagonal].min() > 5  # solved, yet "similar to another instance" reads as a match against a null of 0
    assert (literal.diagonal() > literal.masked_fill(~off_diagonal, -1e9).amax(1) + 4).all()
    assert with_null[off_diagonal].max() < -4
    assert with_null.diagonal().min() > 20
