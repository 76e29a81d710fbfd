from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from solotrack.ops.matrix_nms import matrix_nms


def slow_matrix_nms(masks: np.ndarray, labels: np.ndarray, scores: np.ndarray, kernel: str, sigma: float) -> np.ndarray:
    """METHOD 1.5.5, pair by pair."""

    def f(overlap: float) -> float:
        return math.exp(-sigma * overlap * overlap) if kernel == "gaussian" else 1 - overlap

    n = len(masks)
    iou = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            if labels[i] == labels[j]:
                iou[i, j] = (masks[i] & masks[j]).sum() / max((masks[i] | masks[j]).sum(), 1)
    comp = [max((iou[k, i] for k in range(i)), default=0.0) for i in range(n)]
    decayed = []
    for j in range(n):
        pairs = [i for i in range(j) if labels[i] == labels[j]]
        decayed.append(scores[j] * min((f(iou[i, j]) / f(comp[i]) for i in pairs), default=1.0))
    return np.array(decayed)


def boxes_as_masks(rng: np.random.Generator, n: int) -> np.ndarray:
    masks = np.zeros((n, 24, 24), bool)
    for mask in masks:
        x, y, w, h = rng.integers(1, 12, 4)
        mask[y : y + h, x : x + w] = True
    return masks


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_equals_the_pairwise_rule(kernel: str) -> None:
    rng = np.random.default_rng(0)
    for case in range(200):
        n = int(rng.integers(0, 14))
        masks, labels = boxes_as_masks(rng, n), rng.integers(0, 3, n)
        if kernel == "linear":  # its rule divides by 0 for copies of a better mask
            _, first = np.unique(masks.reshape(n, 24 * 24), axis=0, return_index=True)
            masks, labels = masks[np.sort(first)], labels[np.sort(first)]
        scores = np.sort(rng.random(len(masks)))[::-1].copy()
        sigma = float(rng.choice([0.5, 2.0, 8.0]))
        fast = matrix_nms(torch.from_numpy(masks), torch.from_numpy(labels), torch.from_numpy(scores), kernel=kernel, sigma=sigma)
        np.testing.assert_allclose(fast, slow_matrix_nms(masks, labels, scores, kernel, sigma), atol=1e-5, err_msg=f"case {case}")


def test_known_areas_change_nothing() -> None:
    masks = torch.from_numpy(boxes_as_masks(np.random.default_rng(1), 9))
    labels, scores = torch.zeros(9, dtype=torch.int64), torch.linspace(1, 0.1, 9)
    assert torch.equal(matrix_nms(masks, labels, scores), matrix_nms(masks, labels, scores, areas=masks.sum((1, 2)).float()))


def test_copies_of_a_mask() -> None:
    masks = torch.ones(3, 4, 4, dtype=torch.bool)
    labels, scores = torch.tensor([0, 0, 1]), torch.tensor([0.9, 0.8, 0.7])
    torch.testing.assert_close(matrix_nms(masks, labels, scores), torch.tensor([0.9, 0.8 * math.exp(-2), 0.7]))
    torch.testing.assert_close(matrix_nms(masks, labels, scores, kernel="linear"), torch.tensor([0.9, 0.0, 0.7]))
    three = matrix_nms(masks, torch.zeros(3), scores, kernel="linear")  # 0 / 0 in the rule as written
    torch.testing.assert_close(three, torch.tensor([0.9, 0.0, 0.0]))


def test_unknown_kernel() -> None:
    with pytest.raises(ValueError, match="'gaussian' or 'linear'"):
        matrix_nms(torch.ones(1, 2, 2, dtype=torch.bool), torch.zeros(1), torch.ones(1), kernel="box")
