from __future__ import annotations

import pytest
import torch

from solotrack.ops.fast_nms import fast_nms


def slow_fast_nms(boxes: list, scores: list, classes: list, thresh: float) -> list[int]:
    """Pair by pair: every better box of the class counts, also one that is gone itself."""

    def iou(a: list, b: list) -> float:
        width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
        inter = max(width, 0) * max(height, 0)
        union = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - inter
        return inter / union if union else 0.0

    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [
        i for rank, i in enumerate(order) if not any(classes[j] == classes[i] and iou(boxes[j], boxes[i]) > thresh for j in order[:rank])
    ]


@pytest.mark.parametrize("thresh", [0.0, 0.3, 0.5, 1.0])
def test_equals_the_pairwise_rule(thresh: float) -> None:
    generator = torch.Generator().manual_seed(0)
    gone = 0
    for _ in range(60):
        n = int(torch.randint(0, 14, (1,), generator=generator))
        corner = torch.randint(0, 5, (n, 2), generator=generator)
        boxes = torch.cat([corner, corner + torch.randint(1, 12, (n, 2), generator=generator)], dim=1).float()
        scores = torch.randint(0, 6, (n,), generator=generator) / 5  # some are equal
        classes = torch.randint(0, 2, (n,), generator=generator)
        kept = fast_nms(boxes, scores, classes, thresh).tolist()
        assert kept == slow_fast_nms(boxes.tolist(), scores.tolist(), classes.tolist(), thresh)
        gone += n - len(kept)
    assert gone > 20 or thresh == 1.0


def test_a_suppressed_box_suppresses() -> None:
    """Where ordinary NMS keeps the third of a chain."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    scores, one_class = torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64)
    assert fast_nms(boxes, scores, one_class, 0.3).tolist() == [0]
    assert fast_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.3).tolist() == [0, 1, 2]
