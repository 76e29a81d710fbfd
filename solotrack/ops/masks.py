"""Areas, boxes, centres and overlaps of binary masks."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.nn import functional as F

__all__ = [
    "box_iou",
    "centers_of_mass",
    "drop_small_parts",
    "mask_areas",
    "mask_intersections",
    "mask_iou",
    "masks_to_boxes",
    "resize_mask",
]

_CHUNK_BYTES = 64 << 20  # of float copies of the masks alive at a time
_BLOCK = 128  # bytes of 0 and 1 that are summed into one byte


def _count(masks: torch.Tensor, dim: int) -> torch.Tensor:
    """Number of set pixels along ``dim`` 1 (rows, giving (n, W)) or 2 (columns, giving (n, H)) of masks (n, H, W), int32.

    Bytes are summed into bytes, 128 at a time so that none overflows: on a CPU some 20 times as fast as summing into wider integers.
    """
    pixels = (masks if masks.dtype == torch.bool else masks != 0).view(torch.uint8)
    extra = -pixels.shape[dim] % _BLOCK
    if extra:
        pixels = F.pad(pixels, (0, extra) if dim == 2 else (0, 0, 0, extra))
    blocks = pixels.unflatten(dim, (pixels.shape[dim] // _BLOCK, _BLOCK))
    return blocks.sum(dim + 1, dtype=torch.uint8).sum(dim, dtype=torch.int32)


def mask_areas(masks: torch.Tensor) -> torch.Tensor:
    """Set pixels of each mask: (n, H, W) bool -> (n,) float32."""
    return _count(masks, 1).sum(1).float()


def masks_to_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Tight boxes of masks (n, H, W): (n, 4) float32 XYXY with exclusive right and bottom; zeros for an empty mask."""
    ends = []
    for dim in (1, 2):  # x, then y
        used = _count(masks, dim) > 0  # (n, W) or (n, H)
        index = torch.arange(1, used.shape[1] + 1, device=masks.device, dtype=torch.int32)
        last = (used * index).amax(1)
        first = used.shape[1] - (used * index.flip(0)).amax(1)
        ends.append((torch.minimum(first, last), last))  # an empty mask has last = 0
    (x1, x2), (y1, y2) = ends
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def centers_of_mass(masks: torch.Tensor) -> torch.Tensor:
    """Mean pixel index of each mask: (n, H, W) -> (n, 2) float32 (x, y); (0, 0) for an empty mask."""
    centers = []
    for dim in (1, 2):
        count = _count(masks, dim).double()  # sums of indices pass 2^24, beyond float32's integers
        index = torch.arange(count.shape[1], device=masks.device, dtype=torch.float64)
        centers.append((count * index).sum(1) / count.sum(1).clamp(min=1))
    return torch.stack(centers, dim=1).float()


def mask_intersections(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Common pixels of each mask of ``a`` (n, H, W) with each of ``b`` (m, H, W): (n, m) float32.

    A matrix product in float32 (exact up to 2^24 pixels; half precision would not be), over blocks of pixels so that memory stays bounded.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"Masks of {tuple(a.shape[1:])} and {tuple(b.shape[1:])} pixels cannot be compared; resize them to one size.")
    same = a is b
    a = (a if a.dtype == torch.bool else a != 0).flatten(1)
    b = a if same else (b if b.dtype == torch.bool else b != 0).flatten(1)
    total = torch.zeros((len(a), len(b)), device=a.device)
    step = max(1024, _CHUNK_BYTES // (4 * max(1, len(a) + len(b))))
    with torch.autocast(a.device.type, enabled=False):
        for start in range(0, a.shape[1], step):
            part = a[:, start : start + step].float()
            other = part if same else b[:, start : start + step].float()
            total.addmm_(part, other.t())
    return total


def mask_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of masks (n, H, W) and (m, H, W): (n, m) float32; 0 where the union is empty.

    Raises:
        ValueError: the two sets have different sizes.
    """
    inter = mask_intersections(a, b)
    area_a = mask_areas(a)
    area_b = area_a if a is b else mask_areas(b)
    union = area_a[:, None] + area_b[None, :] - inter
    return inter / union.clamp(min=1)


def box_iou(a: torch.Tensor, b: torch.Tensor, plus_one: bool = False) -> torch.Tensor:
    """Intersection over union of XYXY boxes (n, 4) and (m, 4): (n, m) float32, float64 of float64 boxes; 0 where the union is empty.

    Args:
        plus_one: right and bottom count as inclusive pixels, so every side is one longer (the convention of MaskTrack R-CNN, METHOD 5.4).
    """
    one = 1.0 if plus_one else 0.0
    a, b = (boxes if boxes.dtype == torch.float64 else boxes.float() for boxes in (a, b))
    area_a = (a[:, 2:] - a[:, :2] + one).clamp(min=0).prod(1)
    area_b = (b[:, 2:] - b[:, :2] + one).clamp(min=0).prod(1)
    sides = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2]) + one
    inter = sides.clamp(min=0).prod(2)
    union = area_a[:, None] + area_b[None, :] - inter
    return torch.where(union > 0, inter / union, torch.zeros_like(inter))


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask (h, w) uint8 of 0 and 1 stretched to (height, width): the pixel at the same relative place; the same array at that size."""
    if mask.shape == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def drop_small_parts(soft: torch.Tensor, threshold: float, share: float) -> torch.Tensor:
    """Soft masks (n, h, w) with the small ones of their connected parts set to 0; touching corners connect.

    It goes over the host, one mask after the other.

    Args:
        soft: probabilities.
        threshold: above which a pixel is in the mask.
        share: of the largest part's pixels that another part needs to stay, 0 to 1.
    """
    keep = np.ones(soft.shape, bool)
    for mask, kept in zip((soft > threshold).cpu().numpy().view(np.uint8), keep, strict=True):
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        if count > 2:  # background and one part
            areas = stats[:, cv2.CC_STAT_AREA]
            small = areas < share * areas[1:].max()
            small[0] = False
            kept[small[labels]] = False
    return soft * torch.from_numpy(keep).to(soft.device)
