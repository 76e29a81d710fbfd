from __future__ import annotations

import pytest
import torch

from solotrack.modeling.embedding.centers import instance_centers, mean_over_groups

LEVEL_SIZES = [16, 9, 4]


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Four images with 0, 1, 3 and 4 ground truths, the last of each without a cell where there is more than one."""
    rng = torch.Generator().manual_seed(seed)
    num_instances = [0, 1, 3, 4]
    embeddings = torch.randn(4, sum(LEVEL_SIZES), 5, generator=rng)
    index = torch.full((4, sum(LEVEL_SIZES)), -1)
    for n, count in enumerate(num_instances):
        if count:
            index[n] = torch.randint(-2, max(1, count - 1), (sum(LEVEL_SIZES),), generator=rng).clamp(min=-1)
    return embeddings, index, num_instances


@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_a_loop_over_cells(per_level: bool, normalize: bool) -> None:
    embeddings, index, num_instances = random_batch(0)
    result = instance_centers(embeddings, index, num_instances, level_sizes=LEVEL_SIZES if per_level else None, normalize=normalize)

    level_of = [level for level, size in enumerate(LEVEL_SIZES) for _ in range(size)]
    cells: dict[tuple[int, int, int], list[tuple[int, torch.Tensor]]] = {}
    for n in range(4):
        for r in range(sum(LEVEL_SIZES)):
            if index[n, r] >= 0:
                f = embeddings[n, r]
                key = (level_of[r] if per_level else 0, n, int(index[n, r]))
                cells.setdefault(key, []).append((n * sum(LEVEL_SIZES) + r, f / f.norm() if normalize else f))

    keys = sorted(cells)
    assert list(zip(result.levels.tolist(), result.image_ids.tolist(), result.gt_index.tolist(), strict=True)) == keys
    assert result.counts.tolist() == [len(cells[key]) for key in keys]
    for k, key in enumerate(keys):
        torch.testing.assert_close(result.centers[k], sum(f for _, f in cells[key]) / len(cells[key]))
        members = result.cell_centers == k
        assert result.cell_indices[members].tolist() == [place for place, _ in cells[key]]
        torch.testing.assert_close(result.features[members], torch.stack([f for _, f in cells[key]]))
    assert len(result.cell_indices) == (index >= 0).sum()


@pytest.mark.parametrize("num_instances", [[0, 0], [2, 0]])
def test_no_instance_with_a_cell(num_instances: list[int]) -> None:
    embeddings = torch.randn(2, 29, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    result = instance_centers(embeddings, torch.full((2, 29), -1), num_instances, level_sizes=LEVEL_SIZES)
    assert result.centers.shape == (0, 5)
    assert result.features.shape == (0, 5)
    result.centers.sum().backward()
    assert embeddings.grad.abs().sum() == 0


def test_half_precision_input_gives_float32() -> None:
    embeddings = torch.full((1, 29, 5), 60000.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = instance_centers(embeddings, torch.zeros(1, 29, dtype=torch.long), [1])
    assert result.centers.dtype == result.features.dtype == torch.float32
    torch.testing.assert_close(result.centers, torch.full((1, 5), 60000.0))  # the sum of 29 such would overflow float16


def test_shapes_that_do_not_fit_are_refused() -> None:
    embeddings, index, num_instances = random_batch(0)
    with pytest.raises(ValueError, match=r"share \(N, R\)"):
        instance_centers(embeddings[:, :-1], index, num_instances)
    with pytest.raises(ValueError, match="3 entries for 4 images"):
        instance_centers(embeddings, index, num_instances[:3])
    with pytest.raises(ValueError, match="add up to 25, not to the 29"):
        instance_centers(embeddings, index, num_instances, level_sizes=[16, 9])


def test_mean_over_groups_by_hand() -> None:
    values, groups = torch.tensor([1.0, 3.0, 10.0, 7.0]), torch.tensor([0, 0, 2, 2])
    assert mean_over_groups(values, groups, 4, 2).item() == (2.0 + 8.5) / 2
    rows = torch.tensor([True, False, True, False])
    assert mean_over_groups(values, groups, 4, 2, rows).item() == (1.0 + 10.0) / 2
    assert mean_over_groups(values[:0], groups[:0], 4, 1).item() == 0.0
