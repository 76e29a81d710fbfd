from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from solotrack.modeling.embedding import CenterQueue, InstanceContrastiveLoss, compare_centers, instance_centers


def two_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Image 0: instances 0 and 1; image 1: instance 0 on both levels of two cells."""
    embeddings = torch.arange(16.0).reshape(2, 4, 2)
    return embeddings, torch.tensor([[0, 1, -1, -1], [0, -1, 0, -1]])


def compare(scope: str = "image", views: int = 1, gt_ids: list[int] | None = None, per_level: bool = False, **options: object):
    embeddings, index = two_images()
    centers = instance_centers(embeddings, index, [2, 1], level_sizes=[2, 2] if per_level else None)
    ids = centers.gt_index if gt_ids is None else torch.tensor(gt_ids)
    return compare_centers(centers, ids, num_images=2, num_levels=2 if per_level else 1, views=views, scope=scope, **options)


def test_scopes() -> None:
    image, batch = compare("image"), compare("batch")
    assert image.candidates.int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert batch.candidates.all()
    assert image.positives.equal(torch.eye(3, dtype=torch.bool))
    assert image.negatives.int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert image.groups.tolist() == [0, 0, 1]
    assert (int(image.num_images), batch.groups.tolist(), batch.num_images) == (2, [0, 0, 0], 1)
    # values averaged over an image's rows, then over images; or over all rows
    values = torch.tensor([1.0, 3.0, 8.0])
    assert image.average(values).item() == (2.0 + 8.0) / 2
    assert batch.average(values).item() == 4.0


def test_levels_are_not_compared() -> None:
    comparison = compare("batch", per_level=True)
    # ordered by (level, image, instance): level 0 of instances 00, 01, 10, level 1 of 10
    assert comparison.candidates.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert comparison.groups.tolist() == [0, 0, 0, 1]


def test_views_of_one_picture() -> None:
    for scope in ("image", "batch"):  # one picture: the same thing
        comparison = compare(scope, views=2, gt_ids=[7, 4, 4])  # the second image shows what is instance 1 in the first
        assert comparison.candidates.int().tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
        assert comparison.positives.int().tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
        assert comparison.groups.tolist() == [0, 0, 0]
        assert int(comparison.num_images) == 1


def test_logits_are_scaled_similarities_of_centers() -> None:
    centers = torch.tensor([[0.0, 1.0], [2.0, 3.0], [10.0, 11.0]])  # the last is the mean of (8, 9) and (12, 13)
    torch.testing.assert_close(compare(scale=0.5).logits, 0.5 * centers @ centers.T)
    unit = centers / centers.norm(dim=1, keepdim=True)
    torch.testing.assert_close(compare(metric="cosine", scale=10.0).logits, 10 * unit @ unit.T)


def gather_cases() -> list[dict[str, object]]:
    """Four images, or two pictures in two views, split unevenly in instances; in one case a process has none at all."""
    rng = torch.Generator().manual_seed(0)
    cases = []
    for views, options, counts in (
        (1, {"null_weight": 1.0, "me_weight": 1.0}, [3, 0, 1, 4]),
        (1, {"metric": "cosine", "scale": 5.0, "me_mode": "offdiag", "pool_levels": "per_level"}, [2, 3, 4, 1]),
        (1, {"null_weight": 1.0}, [3, 2, 0, 0]),
        (2, {"null_weight": 1.0, "me_weight": 1.0}, [3, 2, 2, 4]),
        (2, {"null_weight": 1.0, "metric": "cosine"}, [3, 2, 2, 4]),
    ):
        index = torch.stack([torch.randint(-1, count, (13,), generator=rng) if count else torch.full((13,), -1) for count in counts])
        cases.append(
            {
                "views": views,
                "options": {"center_weight": 0.0, **options},  # the center loss has no scope
                "level_sizes": [9, 4],
                "shares": [[0, 1], [2, 3]] if views == 1 else [[0, 2], [1, 3]],  # a process has whole pictures, first views first
                "inputs": torch.randn(4, 13, 6, generator=rng),
                "weight": torch.randn(6, 5, generator=rng) * 0.5,
                "index": index,
                "gt_ids": [torch.randperm(count, generator=rng) for count in counts],
                "past": torch.randn(4 if options.get("metric") == "cosine" else 0, 5, generator=rng),  # of an earlier step, in the queue
            }
        )
    return cases


def as_set(levels: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    """(size, 1 + D) sorted by level and first entry."""
    order = centers[:, 0].argsort(stable=True)
    order = order[levels[order].argsort(stable=True)]
    return torch.cat([levels[order, None].float(), centers[order]], dim=1)


def test_gather_equals_one_process_with_the_whole_batch(tmp_path: Path, repo_root: Path) -> None:
    cases = gather_cases()
    torch.save(cases, tmp_path / "cases.pt")
    worker = Path(__file__).with_name("gather_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    processes = [
        subprocess.Popen([sys.executable, str(worker), str(rank), "2", str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)

    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for number, case in enumerate(cases):
        weight = case["weight"].clone().requires_grad_()
        queue = CenterQueue(40, 5)
        queue.push(case["past"], torch.zeros(len(case["past"]), dtype=torch.long))
        loss = InstanceContrastiveLoss(level_sizes=case["level_sizes"], scope="batch", queue=queue, **case["options"])
        losses = loss(case["inputs"] @ weight, case["index"], case["gt_ids"], case["views"], 0)
        sum(losses.values()).backward()
        assert weight.grad.abs().sum() > 0
        for rank in ranks:
            assert rank[number]["losses"].keys() == losses.keys()
            assert torch.equal(rank[number]["queue"][1], ranks[0][number]["queue"][1]), "every process has the same ring"
            torch.testing.assert_close(as_set(*rank[number]["queue"]), as_set(queue.levels, queue.centers))
            for name, value in losses.items():
                torch.testing.assert_close(rank[number]["losses"][name], value.detach(), rtol=1e-5, atol=1e-6)
        averaged = (ranks[0][number]["gradient"] + ranks[1][number]["gradient"]) / 2  # what DistributedDataParallel does
        torch.testing.assert_close(averaged, weight.grad, rtol=1e-4, atol=1e-6)


def test_two_views_need_pairs() -> None:
    centers = instance_centers(torch.zeros(3, 4, 2), torch.zeros(3, 4, dtype=torch.long), [1, 1, 1])
    with pytest.raises(ValueError, match="even number of images"):
        compare_centers(centers, centers.gt_index, num_images=3, views=2)
