"""Which grid cells are responsible for which instance, and the masks they should give (METHOD 1.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from detectron2.structures import BitMasks, Instances

from solotrack.ops.masks import centers_of_mass, mask_areas

__all__ = ["GridTargets", "LevelPositives", "assign_grid_targets", "count_unassigned", "downscale_masks", "grid_cells"]


@dataclass
class LevelPositives:
    """The positive cells of one level of one image."""

    image: int
    level: int
    cells: torch.Tensor  # (n,) int64, indices within the level
    instances: torch.Tensor  # (n,) int64, indices of ground truths within the image


@dataclass
class GridTargets:
    """Targets of a batch. M = ground truths of an image, R = cells of all levels."""

    classes: torch.Tensor  # (N, R) int64; the number of classes where background
    instance_index: torch.Tensor  # (N, R) int64, index of the ground truth within its image; -1 where background
    level_offsets: tuple[int, ...]  # first cell of each level, then R
    masks: list[list[torch.Tensor]]  # [image][level]: (M, h, w) uint8 at the level's output size; levels of one stride share a tensor
    in_range: list[torch.Tensor]  # [image]: (M, L) bool, the levels whose scale range takes the instance
    empty: list[torch.Tensor]  # [image]: (M,) bool, the instance has no pixel

    def positives(self) -> list[LevelPositives]:
        """The positive cells, an entry for each (image, level) that has any; waits for the device twice, whatever the batch size."""
        num_cells = self.level_offsets[-1]
        image, cell = (self.instance_index >= 0).nonzero(as_tuple=True)
        starts = torch.tensor(self.level_offsets[:-1], device=cell.device)
        images = torch.arange(len(self.masks), device=cell.device)[:, None]
        bounds = torch.searchsorted(image * num_cells + cell, (images * num_cells + starts).flatten())
        instances = self.instance_index[image, cell]
        levels = len(self.level_offsets) - 1
        return [
            LevelPositives(
                image=index // levels,
                level=index % levels,
                cells=cell[first:last] - self.level_offsets[index % levels],
                instances=instances[first:last],
            )
            for index, (first, last) in enumerate(pairwise([*bounds.tolist(), len(cell)]))
            if last > first
        ]

    def mask_targets(self, positives: LevelPositives) -> torch.Tensor:
        """(n, h, w) uint8 target of each cell, h and w being the padded size / (stride / 2)."""
        return self.masks[positives.image][positives.level][positives.instances]


def grid_cells(
    centers: torch.Tensor,
    sides: torch.Tensor,
    padded_size: tuple[int, int],
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    sigma: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The at most 3x3 cells a level that METHOD 1.3 gives to each of M instances.

    Args:
        centers: (M, 2) centres of mass (x, y), pixel indices in the padded image.
        sides: (M, 2) width and height of the tight boxes, pixels.
        padded_size: (Hp, Wp) of the batch.
        num_grids: S of each of the L levels.
        scale_ranges: smallest and largest sqrt(width * height) each level takes, both included.
        sigma: share of the box around the centre that is positive.

    Returns:
        cells: (M, L, 9) int64, numbered over all levels, row after row; meaningless where not valid.
        valid: (M, L, 9) bool.
        in_range: (M, L) bool.
    """
    device = centers.device
    grids = torch.tensor(num_grids, device=device)  # (L,)
    offsets = grids.square().cumsum(0) - grids.square()
    limits = torch.tensor(scale_ranges, device=device, dtype=torch.float32)  # (L, 2)
    size = torch.tensor([padded_size[1], padded_size[0]], device=device, dtype=torch.float64)
    scale = sides.float().prod(1, keepdim=True).sqrt()  # (M, 1)
    in_range = (scale >= limits[:, 0]) & (scale <= limits[:, 1])

    def to_grid(points: torch.Tensor) -> torch.Tensor:  # (M, 2) -> (M, L, 2, 1) column and row
        return (points[:, None] * grids[:, None] / size).floor().long()[..., None]

    centers = centers.double()  # grid lines are hit exactly where float32 would round across them
    half = sides.double() * (0.5 * sigma)
    near = to_grid(centers) + torch.arange(-1, 2, device=device)  # (M, L, 2, 3)
    inside = (near >= to_grid(centers - half).clamp(min=0)) & (near <= torch.minimum(to_grid(centers + half), grids[:, None, None] - 1))
    columns, rows = near.unbind(2)  # (M, L, 3) each
    cells = offsets[:, None, None] + rows[..., :, None] * grids[:, None, None] + columns[..., None, :]
    valid = inside[:, :, 1, :, None] & inside[:, :, 0, None, :] & in_range[..., None, None]
    return cells.flatten(2), valid.flatten(2), in_range


def downscale_masks(masks: torch.Tensor, factor: int, size: tuple[int, int]) -> torch.Tensor:
    """Masks at 1/factor of their size, as OpenCV's bilinear resize rounds bytes: (M, H, W) bool -> (M, h, w) uint8 of 0 and 1.

    An output pixel samples the middle of its factor x factor block, i.e. is the mean of the up to four middle pixels, and set from 0.5 on.
    The masks are placed top-left in a canvas of ``factor * size`` pixels.
    """
    pixels = masks.view(torch.uint8)
    middle = ((factor - 1) // 2, factor // 2)
    rows = pixels.new_zeros((len(masks), size[0], masks.shape[2]))
    for start in middle:
        part = pixels[:, start::factor]
        rows[:, : part.shape[1]] += part
    total = pixels.new_zeros((len(masks), *size))
    for start in middle:
        part = rows[:, :, start::factor]
        total[:, :, : part.shape[2]] += part
    return (total >= 2).view(torch.uint8)


def _bit_masks(instances: Instances) -> torch.Tensor:
    """(M, H, W) bool."""
    if not isinstance(instances.gt_masks, BitMasks):
        raise TypeError(
            f"SOLO needs ground-truth masks as BitMasks, not {type(instances.gt_masks).__name__}; set INPUT.MASK_FORMAT to 'bitmask'."
        )
    return instances.gt_masks.tensor


@torch.no_grad()
def assign_grid_targets(
    instances: Sequence[Instances],
    padded_size: tuple[int, int],
    num_grids: Sequence[int],
    strides: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    sigma: float,
    num_classes: int,
) -> GridTargets:
    """Targets of a batch of images (METHOD 1.3). A later instance takes over the cells of an earlier one.

    Args:
        instances: one per image, with ``gt_boxes`` (tight), ``gt_classes`` and ``gt_masks`` (BitMasks); any of them may be of length 0.
        padded_size: (Hp, Wp) all images are padded to, a multiple of every stride.
        num_grids, strides, scale_ranges: of each level, see :class:`SOLOHead` and :func:`grid_cells`.
        sigma: see :func:`grid_cells`.
        num_classes: written where background.

    Raises:
        TypeError: masks that are not BitMasks.
        ValueError: an odd stride, or masks larger than ``padded_size``.
    """
    if any(stride % 2 for stride in strides):
        raise ValueError(f"MODEL.SOLO.STRIDES is {list(strides)}; strides must be even, for masks come at half of them.")
    masks = [_bit_masks(x) for x in instances]
    for m in masks:
        if m.shape[1] > padded_size[0] or m.shape[2] > padded_size[1]:
            raise ValueError(
                f"Ground-truth masks of {m.shape[1]}x{m.shape[2]} pixels do not fit the padded image of {padded_size[0]}x{padded_size[1]}."
            )
    counts = [len(m) for m in masks]
    device = masks[0].device
    num_cells = sum(s * s for s in num_grids)

    boxes = torch.cat([x.gt_boxes.tensor for x in instances])
    empty = torch.cat([mask_areas(m) for m in masks]) == 0
    cells, valid, in_range = grid_cells(
        torch.cat([centers_of_mass(m) for m in masks]), boxes[:, 2:] - boxes[:, :2], padded_size, num_grids, scale_ranges, sigma
    )
    valid &= ~empty[:, None, None]

    # Instances are numbered through the batch; the largest number that claims a cell is the last one and keeps it.
    image = torch.cat([torch.full((n,), i, device=device) for i, n in enumerate(counts)])[:, None, None]
    order = torch.arange(len(boxes), device=device)[:, None, None].expand_as(cells)
    nowhere = len(masks) * num_cells
    winner = torch.full((nowhere + 1,), -1, device=device)
    winner.scatter_reduce_(0, torch.where(valid, image * num_cells + cells, nowhere).flatten(), order.flatten(), "amax")
    winner = winner[:-1].view(len(masks), num_cells)

    labels = torch.cat([*(x.gt_classes for x in instances), torch.full((1,), num_classes, device=device)])
    first = torch.tensor([0, *accumulate(counts)][:-1], device=device)[:, None]
    factors = [stride // 2 for stride in strides]
    scaled = [{f: downscale_masks(m, f, (padded_size[0] // f, padded_size[1] // f)) for f in set(factors)} for m in masks]
    return GridTargets(
        classes=labels[winner],  # -1 reads the last entry, background
        instance_index=torch.where(winner >= 0, winner - first, -1),
        level_offsets=(0, *accumulate(s * s for s in num_grids)),
        masks=[[by_factor[f] for f in factors] for by_factor in scaled],
        in_range=list(in_range.split(counts)),
        empty=list(empty.split(counts)),
    )


def count_unassigned(targets: GridTargets) -> dict[str, int]:
    """How many instances of the batch train no cell, and why.

    Returns:
        "instances": all of them; "empty": without a pixel; "out_of_range": outside the scale range of every level
        (MODEL.SOLO.SCALE_RANGES); "overwritten": in range, but later instances took all their cells. The last three exclude one another.
    """
    totals = torch.zeros(4, dtype=torch.int64, device=targets.classes.device)
    for index, in_range, empty in zip(targets.instance_index, targets.in_range, targets.empty, strict=True):
        present = torch.zeros(len(empty) + 1, dtype=torch.bool, device=index.device)
        present[index] = True  # background, -1, marks the extra last entry
        outside = ~in_range.any(1) & ~empty
        totals += torch.stack([torch.ones_like(empty).sum(), empty.sum(), outside.sum(), (~present[:-1] & ~outside & ~empty).sum()])
    return dict(zip(("instances", "empty", "out_of_range", "overwritten"), totals.tolist(), strict=True))
