"""From cells to instances: the center C_i of every instance, and averages over instances and images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from solotrack.ops.similarity import NORM_EPS

__all__ = ["InstanceCenters", "instance_centers", "mean_over_groups"]


class InstanceCenters(NamedTuple):
    """Centers of the K instances of a batch that own a cell, ordered by (level, image, instance), and their P cells.

    Attributes:
        centers: (K, D) float32, C_i.
        image_ids: (K,) long, place of the image in the batch.
        gt_index: (K,) long, place of the instance among its image's ground truths.
        levels: (K,) long, level of the center; 0 where levels are pooled.
        counts: (K,) long, cells of the instance, N_i of the paper.
        features: (P, D) float32, embeddings of all cells that belong to an instance, image by image.
        cell_indices: (P,) long, index of those cells in the flattened (N * R) batch.
        cell_centers: (P,) long, row of ``centers`` each cell belongs to.
    """

    centers: torch.Tensor
    image_ids: torch.Tensor
    gt_index: torch.Tensor
    levels: torch.Tensor
    counts: torch.Tensor
    features: torch.Tensor
    cell_indices: torch.Tensor
    cell_centers: torch.Tensor


def instance_centers(
    embeddings: torch.Tensor,
    instance_index: torch.Tensor,
    num_instances: Sequence[int],
    *,
    level_sizes: Sequence[int] | None = None,
    normalize: bool = False,
) -> InstanceCenters:
    """C_i = mean of f_q over the cells q of instance i (paper §3.2, METHOD 2.3).

    Instances without a cell (out of every scale range, overwritten, empty mask) have no center and do not count in K. Everything
    is a gather or a segment sum, whatever the number of images; a host-device wait happens where P and where K are read.

    Args:
        embeddings: (N, R, D) of every cell, any floating type.
        instance_index: (N, R) long, place of the cell's instance among the image's ground truths; -1 = background.
        num_instances: ground truths of each of the N images.
        level_sizes: cells of each level, adding up to R, for one center per (level, instance); None pools all levels.
        normalize: bring each cell's embedding to unit length first.

    Raises:
        ValueError: shapes that do not fit one another.
    """
    num_images, num_cells = instance_index.shape
    if embeddings.shape[:2] != instance_index.shape:
        raise ValueError(f"embeddings {tuple(embeddings.shape)} and instance_index {tuple(instance_index.shape)} must share (N, R).")
    if len(num_instances) != num_images:
        raise ValueError(f"num_instances has {len(num_instances)} entries for {num_images} images.")
    if level_sizes is not None and sum(level_sizes) != num_cells:
        raise ValueError(f"level_sizes {list(level_sizes)} add up to {sum(level_sizes)}, not to the {num_cells} cells of an image.")

    with torch.autocast(embeddings.device.type, enabled=False):
        flat_index = instance_index.flatten()
        cell_indices = (flat_index >= 0).nonzero().squeeze(1)  # (P,)
        features = embeddings.flatten(0, 1).index_select(0, cell_indices).float()  # (P, D)
        if normalize:
            features = F.normalize(features, dim=1, eps=NORM_EPS)

        # One number per (level, image, instance), from which all three can be read back.
        stride = max([1, *num_instances])
        keys = cell_indices // num_cells * stride + flat_index[cell_indices]
        if level_sizes is not None:
            bounds = torch.tensor(level_sizes, device=keys.device).cumsum(0)
            levels = torch.bucketize(cell_indices % num_cells, bounds, right=True)
            keys = keys + levels * (num_images * stride)
        keys, cell_centers, counts = keys.unique(return_inverse=True, return_counts=True)  # (K,), (P,), (K,)

        sums = features.new_zeros(len(keys), features.shape[1]).index_add(0, cell_centers, features)
        images = keys // stride
        return InstanceCenters(
            centers=sums / counts[:, None],
            image_ids=images % num_images,
            gt_index=keys % stride,
            levels=images // num_images,
            counts=counts,
            features=features,
            cell_indices=cell_indices,
            cell_centers=cell_centers,
        )


def mean_over_groups(
    values: torch.Tensor,
    groups: torch.Tensor,
    num_groups: int,
    num_images: torch.Tensor | int,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of the values of each group, summed over groups and divided by a number of images.

    With one group an image this is METHOD 2.6's "average over images with K >= 1"; with a group per (level, image) the levels of an
    image are summed. Groups without a counted row add 0, so that an empty batch gives a zero with a graph.

    Args:
        values: (K,) loss of each row.
        groups: (K,) long, group of each row, below ``num_groups``.
        num_groups: number of groups, those without rows included.
        num_images: divisor of the sum over groups, at least 1.
        rows: (K,) bool, the rows that count; None = all.
    """
    weights = torch.ones_like(values) if rows is None else rows.to(values.dtype)
    sums = values.new_zeros(num_groups).index_add(0, groups, values * weights)
    totals = values.new_zeros(num_groups).index_add(0, groups, weights)
    return (sums / totals.clamp(min=1)).sum() / num_images
