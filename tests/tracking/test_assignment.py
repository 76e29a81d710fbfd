"""Greedy and Hungarian linking against slow references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from solotrack.tracking.assignment import DROPPED, NEW, assign


def greedy_reference(values: np.ndarray, null: np.ndarray, loser: str) -> list[int]:
    """All pairs in one list, sorted, taken one by one."""
    n, k = values.shape
    pairs = sorted((-values[i, j], i, j) for i in range(n) for j in range(k) if values[i, j] >= null[i])
    match = [NEW] * n
    for _, i, j in pairs:
        if match[i] == NEW and j not in match:
            match[i] = j
    return finish_reference(match, values, null, loser)


def finish_reference(match: list[int], values: np.ndarray, null: np.ndarray, loser: str) -> list[int]:
    for i in range(len(match)):
        if match[i] == NEW and loser == "drop" and any(v >= null[i] for v in values[i]):
            match[i] = DROPPED
    return match


def total(match: np.ndarray, values: np.ndarray, null: np.ndarray) -> float:
    return sum(values[i, j] if j >= 0 else null[i] for i, j in enumerate(match))


@pytest.mark.parametrize("loser", ["drop", "new"])
def test_greedy_equals_reference(loser: str) -> None:
    rng = np.random.default_rng(0)
    for case in range(300):
        n, k = rng.integers(1, 9, 2)
        values = rng.normal(size=(n, k))
        if case % 2:  # many ties
            values = np.round(values)
        values[rng.random((n, k)) < 0.2] = -np.inf
        null = np.round(rng.normal(size=n) - 0.5, 1)
        assert assign(values, null, "greedy", loser).tolist() == greedy_reference(values, null, loser)


def test_hungarian_has_the_best_total() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        n, k = rng.integers(1, 5, 2)
        values = rng.normal(size=(n, k))
        values[rng.random((n, k)) < 0.2] = -np.inf
        null = rng.normal(size=n) - 0.5
        options = itertools.product(*[[*range(k), NEW]] * n)
        best = max(total(o, values, null) for o in options if len({j for j in o if j >= 0}) == sum(j >= 0 for j in o))
        match = assign(values, null, "hungarian")
        links = [j for j in match if j >= 0]
        assert len(set(links)) == len(links)
        assert total(match, values, null) == pytest.approx(best)
        assert match.tolist() == finish_reference([j if j >= 0 else NEW for j in match], values, null, "drop")


def test_hungarian_equals_the_problem_with_null_columns() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        values, null = rng.normal(size=(30, 25)), rng.normal(size=30)
        own_null = np.where(np.eye(30, dtype=bool), null[:, None], -np.inf)
        _, columns = linear_sum_assignment(np.concatenate((values, own_null), axis=1), maximize=True)
        expected = np.where(columns < 25, columns, NEW)
        assert assign(values, null, "hungarian", "new").tolist() == expected.tolist()


def test_greedy_and_hungarian_differ() -> None:
    values = np.array([[0.9, 0.8], [0.8, 0.1]])
    assert assign(values, 0.5, "greedy").tolist() == [0, DROPPED]  # the best pair first
    assert assign(values, 0.5, "hungarian").tolist() == [1, 0]  # .8 + .8 is more than .9 + nothing
    assert assign(values, 0.0, "greedy").tolist() == [0, 1]  # the loser takes its next best


def test_the_null_is_part_of_the_hungarian_problem() -> None:
    values = np.array([[0.9, 0.6], [0.8, 0.1]])
    # Without the null, .6 + .8 beats .9 + .1. With it, unlinked detections add .75: .9 + .75 is the best.
    assert assign(values, 0.75, "hungarian").tolist() == [0, DROPPED]
    assert assign(values, 0.0, "hungarian").tolist() == [1, 0]


@pytest.mark.parametrize("method", ["greedy", "hungarian"])
def test_losers(method: str) -> None:
    values = np.array([[0.9], [0.8], [0.2]])
    assert assign(values, 0.5, method).tolist() == [0, DROPPED, NEW]  # resembles a taken track; resembles none
    assert assign(values, 0.5, method, loser="new").tolist() == [0, NEW, NEW]


@pytest.mark.parametrize("method", ["greedy", "hungarian"])
def test_edges(method: str) -> None:
    assert assign(np.empty((0, 3)), 0.5, method).tolist() == []
    assert assign(np.empty((2, 0)), 0.5, method).tolist() == [NEW, NEW]
    assert assign(np.full((2, 2), -np.inf), 0.5, method).tolist() == [NEW, NEW]
    assert assign(np.array([[0.5]]), 0.5, method).tolist() == [0]  # a value equal to the null is good enough
    assert assign(np.full((1, 2), 0.5), 0.5, method)[0] in (0, 1)


def test_ties_go_to_the_better_detection_and_the_older_track() -> None:
    assert assign(np.full((2, 2), 0.7), 0.5).tolist() == [0, 1]
    assert assign(np.full((2, 1), 0.7), 0.5).tolist() == [0, DROPPED]


def test_hungarian_links_rather_than_not() -> None:
    """The second detection gains nothing by its link with the second track, yet the pair is good enough."""
    values = np.array([[0.9, 0.0, 0.4], [0.1, 0.5, 0.4], [0.3, 0.2, 0.8]])
    assert assign(values, 0.5, "hungarian").tolist() == [0, 1, 2]
    assert assign(np.array([[0.1, 0.5], [0.5, 0.1]]), 0.5, "hungarian").tolist() == [1, 0]


def test_large_matrix() -> None:
    rng = np.random.default_rng(3)
    values, null = rng.normal(size=(500, 400)), np.full(500, 0.5)
    greedy = assign(values, null)
    assert greedy.tolist() == greedy_reference(values, null, "drop")
    assert total(assign(values, null, "hungarian"), values, null) >= total(greedy, values, null)
