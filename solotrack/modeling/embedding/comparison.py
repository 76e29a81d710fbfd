"""Which centers are compared with which: within an image, the batch or all processes; within one view or across two."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.utils import comm

from solotrack.ops.similarity import pairwise_similarity

from .centers import InstanceCenters, mean_over_groups

__all__ = ["MASKED_LOGIT", "Comparison", "compare_centers", "count_pictures", "gather_centers"]

# Stands for an entry that is not in a softmax. Finite, so that 0 * log 0 and rows without any entry need no care: exp() of it is
# exactly 0 beside any logit that occurs (squared norms of embeddings stay below 1e8).
MASKED_LOGIT = -1e30


class Comparison(NamedTuple):
    """The similarity matrix of eq (3) before its softmax, and the part each entry plays.

    Q is the number of centers of past steps, which have a column and no row; 0 without a queue.

    Attributes:
        logits: (K, K + Q) float32, similarity of each center with each other.
        candidates: (K, K + Q) bool, entries of the row's softmax.
        positives: (K, K + Q) bool, the candidate that is the right answer; at most one a row.
        groups: (K,) long: a term is averaged over the rows of a group ...
        num_groups: int, and summed over groups ...
        num_images: scalar tensor or int, and divided by this.
    """

    logits: torch.Tensor
    candidates: torch.Tensor
    positives: torch.Tensor
    groups: torch.Tensor
    num_groups: int
    num_images: torch.Tensor | int

    @property
    def negatives(self) -> torch.Tensor:
        """(K, K + Q) bool, candidates that are other instances."""
        return self.candidates & ~self.positives

    def average(self, values: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """One number from a term's value for each row, (K,); only ``rows`` (K,) bool count where given."""
        return mean_over_groups(values, self.groups, self.num_groups, self.num_images, rows)


def count_pictures(num_images: int, views: int) -> int:
    """Pictures behind a batch of images: image n shows picture n % pictures, in view n // pictures.

    Raises:
        ValueError: the images do not divide into views.
    """
    if num_images % views:
        raise ValueError(f"Two views need an even number of images, first views then second views; got {num_images}.")
    return num_images // views


def compare_centers(
    centers: InstanceCenters,
    gt_ids: torch.Tensor,
    *,
    num_images: int,
    num_levels: int = 1,
    views: int = 1,
    scope: str = "image",
    metric: str = "dot",
    scale: float = 1.0,
    queue: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Comparison:
    """Logits between centers (eq 3) with the candidates and the positive of every row.

    views=1, the paper: a center is compared with all centers in scope, itself included; itself is the positive.
    views=2 (METHOD 15, reading 1): images n and n + num_images / 2 are two views of one picture. A center is compared with all
    other centers in scope, of both views, itself excluded; the positive is the same instance's center in the other view. An instance
    that only one view shows has no positive: it is a negative for others.

    Scopes (METHOD 2.5): "image" compares within an image (a picture with both its views), and terms are averaged over images with a
    center; "batch" compares across the batch, and terms are averaged over all rows; "gather" is "batch" over the batches of all
    processes, and "batch" itself where there is one process. Centers of different levels are never compared (METHOD 2.3, per level).

    With "gather" each process computes the whole matrix, so the value is the same everywhere, and backpropagates to its own centers
    with the number of processes as a factor: after DistributedDataParallel's averaging the gradient is that of one process with the
    whole batch. Only the forward pass communicates; every process must make this call in every step, with centers or without.

    Args:
        gt_ids: (K,) long, id of each center's instance within its picture, the same in both views. Only read with two views.
        num_images: N, images in the batch, views counted.
        num_levels: levels that have their own centers.
        queue: centers (Q, D) of past steps and their levels (Q,), -1 for none: other instances to every row, whatever the scope.

    Raises:
        ValueError: two views with an odd number of images.
    """
    pictures = count_pictures(num_images, views)
    picture, view = centers.image_ids % pictures, centers.image_ids // pictures
    process = torch.full_like(picture, comm.get_rank())
    labels = torch.stack([centers.levels, process, picture, gt_ids, view], dim=1)  # (K, 5)
    vectors = centers.centers
    if scope == "gather" and comm.get_world_size() > 1:
        vectors, labels = gather_centers(vectors, labels)

    def same(columns: int) -> torch.Tensor:
        return (labels[:, None, :columns] == labels[None, :, :columns]).all(dim=2)  # (K, K)

    level = labels[:, 0]
    if scope == "image":
        in_scope = same(3)
        groups, num_groups = level * pictures + picture, num_levels * pictures
        seen = vectors.new_zeros(pictures).index_fill(0, picture, 1)
        divisor = seen.sum().clamp(min=1)
    else:
        in_scope = same(1)
        groups, num_groups, divisor = level, num_levels, 1

    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    if views == 1:
        candidates, positives = in_scope, itself
    else:
        candidates, positives = in_scope & ~itself, same(4) & ~itself
    others = vectors
    if queue is not None:
        past, past_levels = queue
        others = torch.cat([vectors, past])  # a copy: the queue is overwritten before the backward pass
        candidates = torch.cat([candidates, level[:, None] == past_levels], dim=1)
        positives = F.pad(positives, (0, len(past)))
    logits = pairwise_similarity(vectors, others, metric, scale)
    return Comparison(logits, candidates, positives, groups, num_groups, divisor)


def gather_centers(vectors: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centers (K, D) and labels (K, L) long of all processes, in the order of the processes; see ``compare_centers`` for the gradient.

    Every process must make this call, with centers or without.
    """
    world, rank = comm.get_world_size(), comm.get_rank()
    own_size = torch.tensor([len(labels)], device=labels.device)
    sizes = [torch.empty_like(own_size) for _ in range(world)]
    dist.all_gather(sizes, own_size)
    sizes = torch.cat(sizes).tolist()

    def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
        padded = tensor.new_zeros(max(sizes), tensor.shape[1])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        return [part[:size] for part, size in zip(parts, sizes, strict=True)]

    gathered = gather(vectors.detach())
    gathered[rank] = vectors.detach() + world * (vectors - vectors.detach())  # value unchanged, gradient times the processes
    return torch.cat(gathered), torch.cat(gather(labels))
