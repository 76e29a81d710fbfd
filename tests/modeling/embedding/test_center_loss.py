from __future__ import annotations

import pytest
import torch

from solotrack.modeling.embedding.center_loss import center_loss
from solotrack.modeling.embedding.centers import instance_centers

# Two images of four cells, D = 2. Image 0: instance 0 at (0,0) and (4,2): center (2,1); instance 1 at (9,9) alone. Image 1: nothing.
EMBEDDINGS = torch.tensor([[[0.0, 0.0], [9.0, 9.0], [4.0, 2.0], [5.0, 5.0]], [[1.0, 1.0]] * 4])
INDEX = torch.tensor([[0, 1, 0, -1], [-1, -1, -1, -1]])


def loss_of(embeddings: torch.Tensor = EMBEDDINGS, **options: object) -> torch.Tensor:
    return center_loss(instance_centers(embeddings, INDEX, [2, 1]), num_images=2, **options)


def test_by_hand() -> None:
    # each cell of instance 0 is |2| + |1| = 3 from its center; the image without a cell does not count
    assert loss_of(reduction="sum").item() == 6.0
    assert loss_of(reduction="mean").item() == pytest.approx((1.5 + 0.0) / 2)  # mean over D 1.5, over cells 1.5, over instances .75
    # smooth L1: |2| -> 1.5, |1| -> 0.5
    assert loss_of(reduction="sum", loss_type="smooth_l1").item() == 4.0
    assert loss_of(reduction="mean", loss_type="smooth_l1").item() == pytest.approx(0.5)


def test_mean_over_images_with_an_instance() -> None:
    embeddings = torch.cat([EMBEDDINGS, EMBEDDINGS[:1] * 2])
    index = torch.cat([INDEX, INDEX[:1]])
    centers = instance_centers(embeddings, index, [2, 1, 2])
    assert center_loss(centers, num_images=3, reduction="sum").item() == (6.0 + 12.0) / 2
    assert center_loss(centers, num_images=3, reduction="mean").item() == pytest.approx((0.75 + 1.5) / 2)


def test_levels_are_summed() -> None:
    # cells 0, 1 are level 0 and cells 2, 3 level 1: instance 0 falls into two centers of one cell each
    centers = instance_centers(EMBEDDINGS, INDEX, [2, 1], level_sizes=[2, 2])
    assert center_loss(centers, num_images=2, num_levels=2, reduction="sum").item() == 0.0
    index = torch.tensor([[0, 0, 0, 0], [-1, -1, -1, -1]])
    centers = instance_centers(EMBEDDINGS, index, [1, 0], level_sizes=[2, 2])
    # level 0: (0,0), (9,9): 4.5 per entry; level 1: (4,2), (5,5): .5 and 1.5
    assert center_loss(centers, num_images=2, num_levels=2, reduction="mean").item() == pytest.approx(4.5 + 1.0)
    assert center_loss(centers, num_images=2, num_levels=2, reduction="sum").item() == pytest.approx(18.0 + 4.0)


def test_detached_centers_do_not_move() -> None:
    for detach in (False, True):
        embeddings = torch.tensor([[[0.0], [1.0], [8.0], [0.0]], [[0.0]] * 4], requires_grad=True)
        centers = instance_centers(embeddings, torch.tensor([[0, 0, 0, -1], [-1] * 4]), [1, 0])  # center 3
        center_loss(centers, num_images=2, reduction="sum", detach=detach).backward()
        # signs of f - C are -1, -1, +1; through the center each cell also gets minus a third of their sum
        expected = [-1.0, -1.0, 1.0] if detach else [-2 / 3, -2 / 3, 4 / 3]
        assert embeddings.grad[0, :3, 0].tolist() == pytest.approx(expected)


def test_one_cell_gives_no_gradient() -> None:
    embeddings = EMBEDDINGS.clone().requires_grad_()
    center_loss(instance_centers(embeddings, torch.tensor([[0, 1, 2, -1], [0, -1, -1, -1]]), [3, 1]), num_images=2).backward()
    assert embeddings.grad.abs().sum() == 0


def test_empty_batch_is_a_zero_with_a_graph() -> None:
    embeddings = EMBEDDINGS.clone().requires_grad_()
    loss = center_loss(instance_centers(embeddings, torch.full((2, 4), -1), [0, 3]), num_images=2)
    loss.backward()
    assert loss.item() == 0.0
    assert embeddings.grad.abs().sum() == 0
