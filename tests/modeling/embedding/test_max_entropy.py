from __future__ import annotations

import math

import pytest
import torch

from solotrack.modeling.embedding.comparison import Comparison
from solotrack.modeling.embedding.contrast_loss import contrast_loss
from solotrack.modeling.embedding.max_entropy import max_entropy_term


def one_image(logits: torch.Tensor) -> Comparison:
    k = len(logits)
    return Comparison(logits, torch.ones(k, k, dtype=torch.bool), torch.eye(k, dtype=torch.bool), torch.zeros(k, dtype=torch.long), 1, 1)


def test_by_hand() -> None:
    # rows of S: (.5, .25, .25), (.1, .8, .1), (.2, .3, .5)
    s = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]], dtype=torch.float64)
    comparison = one_image(s.log() + torch.tensor([[3.0], [-1.0], [0.5]]))  # a softmax does not see a constant in a row
    rows = [2 * 0.25 * math.log(4), 2 * 0.1 * math.log(10), -0.2 * math.log(0.2) - 0.3 * math.log(0.3)]
    assert max_entropy_term(comparison, "paper").item() == pytest.approx(-sum(rows) / 3)
    assert max_entropy_term(comparison, "minimize").item() == pytest.approx(sum(rows) / 3)
    # off the diagonal: (.5, .5), (.5, .5), (.4, .6), entropies over log 2
    rows = [1.0, 1.0, -(0.4 * math.log(0.4) + 0.6 * math.log(0.6)) / math.log(2)]
    assert max_entropy_term(comparison, "offdiag").item() == pytest.approx(-sum(rows) / 3)


def test_null_entry_is_in_the_softmax_but_not_in_the_sum() -> None:
    # row (2, 1, 1) with a null of 4 times e^0: S = .25, .125, .125 and .5 for the null
    comparison = one_image(torch.tensor([[2.0, 1.0, 1.0]] * 3).log())
    off = 0.125 * math.log(8)
    first, other = 2 * off, 0.25 * math.log(4) + off
    result = max_entropy_term(comparison, "paper", null_logit=math.log(4))
    assert result.item() == pytest.approx(-(first + 2 * other) / 3)


def test_offdiag_needs_three_and_ignores_the_diagonal() -> None:
    for k in (1, 2):
        logits = torch.randn(k, k, generator=torch.Generator().manual_seed(k)).requires_grad_()
        loss = max_entropy_term(one_image(logits), "offdiag")
        loss.backward()
        assert loss.item() == 0.0
        assert logits.grad.abs().sum() == 0
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    raised = logits + 30 * torch.eye(4)  # S_ii = 1 to the last digit: dividing probabilities would give 0 / 0
    torch.testing.assert_close(max_entropy_term(one_image(raised), "offdiag"), max_entropy_term(one_image(logits), "offdiag"))
    even = one_image(torch.full((5, 5), -3.0) + 80 * torch.eye(5))
    assert max_entropy_term(even, "offdiag").item() == pytest.approx(-1.0)


@pytest.mark.parametrize("mode", ["paper", "offdiag", "minimize"])
@pytest.mark.parametrize("k", [0, 1, 200])
def test_finite_for_logits_of_thousands(mode: str, k: int) -> None:
    logits = (torch.randn(k, k, generator=torch.Generator().manual_seed(0)) * 5000).requires_grad_()
    loss = max_entropy_term(one_image(logits), mode)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    if k == 1:
        assert loss.item() == 0.0


@pytest.mark.parametrize(
    ("weight", "k", "diagonal"),
    [
        (1, 2, 0.88),
        (1, 5, 0.67),
        (1, 10, 0.52),
        (1, 20, 0.41),
        (0.3, 2, 0.987),
        (0.3, 5, 0.955),
        (0.3, 10, 0.914),
        (0.3, 20, 0.857),
        (0.1, 2, 1),
        (0.1, 5, 1),
        (0.1, 10, 1),
        (0.1, 20, 1),
    ],
)
def test_where_contrast_and_entropy_balance(weight: float, k: int, diagonal: float) -> None:  # T7: the table of METHOD 2.7
    low, high = 0.0, 30.0  # of the diagonal logit, off-diagonal ones at 0; the total falls, then rises
    for _ in range(50):
        gap = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        comparison = one_image(gap * torch.eye(k, dtype=torch.float64))
        (contrast_loss(comparison) + weight * max_entropy_term(comparison, "paper")).backward()
        middle = (low + high) / 2
        low, high = (middle, high) if gap.grad < 0 else (low, middle)
    s_ii = comparison.logits.softmax(dim=1)[0, 0].item()
    assert s_ii == pytest.approx(diagonal, abs=0.005 if weight == 1 else 0.0005)
    s = (1 - s_ii) / (k - 1)
    if weight == 0.1:
        assert s == pytest.approx(1.7e-5, rel=0.03)
    assert 1 / s_ii == pytest.approx(-weight * (1 + math.log(s)), rel=1e-4)  # the stationarity condition itself


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'loud'.*'offdiag'"):
        max_entropy_term(one_image(torch.zeros(2, 2)), "loud")
