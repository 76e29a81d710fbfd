"""The center loss: cells of one instance agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .centers import InstanceCenters, mean_over_groups

__all__ = ["center_loss"]


def center_loss(
    centers: InstanceCenters,
    *,
    num_images: int,
    num_levels: int = 1,
    reduction: str = "mean",
    loss_type: str = "l1",
    detach: bool = False,
) -> torch.Tensor:
    """L_center of an image, averaged over the images with an instance (paper eq 2, METHOD 2.4).

        L_i = Σ_{q in Ω_i} ||C_i - f_q||_1

    "sum" is eq (2) as written: summed over the D entries, the cells of an instance, and the instances of an image (and their levels, where
    centers are kept by level). "mean" is the mean over D, over the cells of an instance, and over the instances of an image
    (of a level; levels are summed). An instance of one cell adds 0. With two views each view is an image of its own.

    Args:
        num_images: N, images in the batch, views counted.
        num_levels: levels that have their own centers.
        reduction: "mean" or "sum".
        loss_type: "l1", or "smooth_l1" (quadratic below a distance of 1).
        detach: no gradient through the centers: cells move, centers follow.

    Returns:
        Scalar float32; a zero with a graph where no image has an instance.
    """
    targets = centers.centers.detach() if detach else centers.centers
    targets = targets.index_select(0, centers.cell_centers)  # (P, D)
    measure = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[loss_type]
    distances = measure(centers.features, targets, reduction="none")
    distances = distances.sum(dim=1) if reduction == "sum" else distances.mean(dim=1)  # (P,)
    values = distances.new_zeros(len(centers.counts)).index_add(0, centers.cell_centers, distances)  # (K,)

    seen = values.new_zeros(num_images).index_fill(0, centers.image_ids, 1).sum().clamp(min=1)
    if reduction == "sum":
        return values.sum() / seen
    groups = centers.levels * num_images + centers.image_ids
    return mean_over_groups(values / centers.counts, groups, num_levels * num_images, seen)
