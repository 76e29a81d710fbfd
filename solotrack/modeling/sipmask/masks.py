"""Masks from basis masks and a box's coefficients, one set for each quarter of the box, and bilinear reading of maps, METHOD 7.2
(Cao et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, Boxes
from torch.nn import functional as F
from torchvision.ops import roi_align

__all__ = ["assemble_masks", "box_mask_loss", "quarter_logits", "read_points"]


def quarter_logits(windows: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Mask logits in windows of the basis masks that are the boxes: each quarter combines them by coefficients of its own.

    Args:
        windows: (n, K, M, M) basis masks in each box, M even.
        coefficients: (n, 4, K) of the upper left, upper right, lower left and lower right quarter.

    Returns:
        (n, M, M).
    """
    half = windows.shape[-1] // 2
    quarters = windows.unflatten(3, (2, half)).unflatten(2, (2, half))  # (n, K, 2 down, h, 2 across, w)
    return torch.einsum("nkahbw,nabk->nahbw", quarters, coefficients.unflatten(1, (2, 2))).flatten(3).flatten(1, 2)


def box_mask_loss(
    basis: torch.Tensor,
    coefficients: torch.Tensor,
    index: torch.Tensor,
    boxes: Sequence[Boxes],
    masks: Sequence[BitMasks],
    stride: int,
    resolution: int,
) -> torch.Tensor:
    """Binary cross-entropy in the ground-truth boxes: mean over ``resolution``² points spread over the box, then over the locations; 0,
    with gradients, without locations.

    Args:
        basis: (N, K, h, w).
        coefficients: (P, 4, K) of the locations that have an object to find.
        index: (P,) that object, numbered over all images.
        boxes, masks: of each image's objects, in pixels of the padded images.
        stride: pixels a cell of ``basis``.
        resolution: points a side of a box, even.
    """
    if len(index) == 0:
        return (basis.sum() + coefficients.sum()) * 0.0
    # One sample at the centre of each cell reads what interpolation to the image's size gives there.
    windows = roi_align(basis, [x.tensor for x in boxes], resolution, 1.0 / stride, sampling_ratio=1, aligned=True)  # (G, K, M, M)
    target = torch.cat([m.crop_and_resize(b.tensor, resolution) for m, b in zip(masks, boxes, strict=True)]).to(windows.dtype)
    return F.binary_cross_entropy_with_logits(quarter_logits(windows[index], coefficients), target[index])


def assemble_masks(basis: torch.Tensor, coefficients: torch.Tensor, boxes: torch.Tensor, stride: int) -> torch.Tensor:
    """Soft masks of n boxes of an image: probabilities in the box, 0 outside.

    Args:
        basis: (K, h, w).
        coefficients: (n, 4, K), see :func:`quarter_logits`.
        boxes: (n, 4) XYXY in pixels.
        stride: pixels a cell of ``basis``.

    Returns:
        (n, H, W) float32, H = h·stride and W = w·stride, those of the padded image.
    """
    size = (basis.shape[1] * stride, basis.shape[2] * stride)
    y, x = (torch.arange(length, device=boxes.device) + 0.5 for length in size)  # pixel centres
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # (n, 1)
    inside = ((y >= y1) & (y < y2))[:, :, None] & ((x >= x1) & (x < x2))[:, None]  # (n, H, W)
    left, upper = (x < (x1 + x2) / 2)[:, None], (y < (y1 + y2) / 2)[:, :, None]
    if len(boxes) == 0:
        return basis.new_zeros(inside.shape)
    combined = torch.einsum("nqk,khw->nqhw", coefficients, basis)
    fine = F.interpolate(combined, size=size, mode="bilinear", align_corners=False)
    upper_left, upper_right, lower_left, lower_right = fine.unbind(1)
    logits = torch.where(upper, torch.where(left, upper_left, upper_right), torch.where(left, lower_left, lower_right))
    return logits.sigmoid() * inside


def read_points(maps: torch.Tensor, image: torch.Tensor, points: torch.Tensor, stride: int) -> torch.Tensor:
    """Bilinear values of maps at points; beyond the outermost cell centres those of the border.

    Args:
        maps: (N, D, h, w).
        image: (P,) the map of each point.
        points: (P, 2) x, y in pixels.
        stride: pixels a cell; the first cell's centre is at stride / 2.

    Returns:
        (P, D).
    """
    largest = torch.tensor([maps.shape[3] - 1, maps.shape[2] - 1], device=maps.device)
    place = torch.minimum((points / stride - 0.5).clamp(min=0), largest)
    first = place.long()
    share = (place - first).to(maps.dtype)
    after = torch.minimum(first + 1, largest)
    (x0, y0), (x1, y1) = first.unbind(1), after.unbind(1)
    across, down = share[:, :1], share[:, 1:]
    above = torch.lerp(maps[image, :, y0, x0], maps[image, :, y0, x1], across)
    below = torch.lerp(maps[image, :, y1, x0], maps[image, :, y1, x1], across)
    return torch.lerp(above, below, down)
