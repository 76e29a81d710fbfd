"""From SOLO's outputs to instances (METHOD 1.5), and the cells their embeddings are read at (METHOD 5.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

from solotrack.ops.masks import centers_of_mass, drop_small_parts, mask_areas, mask_iou, masks_to_boxes
from solotrack.ops.matrix_nms import matrix_nms

from .head import SOLOHead
from .targets import grid_cells

__all__ = ["Candidates", "SOLOInference", "embedding_cells", "find_candidates", "point_nms", "resize_masks"]

_CHUNK_BYTES = 64 << 20  # of full-size soft masks alive at a time
_CLUSTER_IOU = 0.5  # METHOD 5.2


def point_nms(heat: torch.Tensor) -> torch.Tensor:
    """Zero every score that is below its left, upper or upper-left neighbour: (N, C, S, S) -> (N, C, S, S).

    The window is 2x2 with the cell at its lower right, hence not symmetric (METHOD 1.5.2).
    """
    peak = F.max_pool2d(heat, kernel_size=2, stride=1, padding=1)[..., :-1, :-1]
    return heat * (heat == peak)


@dataclass
class Candidates:
    """(cell, class) pairs of a batch, in the order of image and cell."""

    image: torch.Tensor  # (n,) int64
    cells: torch.Tensor  # (n,) int64, numbered over all levels
    classes: torch.Tensor  # (n,) int64
    scores: torch.Tensor  # (n,) float32

    def __getitem__(self, item: torch.Tensor | slice) -> Candidates:
        if isinstance(item, torch.Tensor) and item.dtype == torch.bool:
            item = item.nonzero()[:, 0]  # waits for the device once, not for each attribute
        return Candidates(self.image[item], self.cells[item], self.classes[item], self.scores[item])


def find_candidates(category_scores: torch.Tensor, num_grids: Sequence[int], score_thresh: float, limit: int) -> Candidates:
    """Pairs whose score survives point NMS and is above ``score_thresh``: (N, R, C) scores -> candidates (METHOD 1.5.2, 1.5.3).

    An image with more than ``limit`` of them keeps the best, so that an untrained network or a threshold near 0 cannot ask for thousands of
    masks.
    """
    n, _, c = category_scores.shape
    levels = category_scores.split([s * s for s in num_grids], dim=1)
    heat = torch.cat(
        [point_nms(level.transpose(1, 2).reshape(n, c, s, s)).flatten(2) for level, s in zip(levels, num_grids, strict=True)], dim=2
    ).transpose(1, 2)  # (N, R, C)
    image, cells, classes = (heat > score_thresh).nonzero(as_tuple=True)
    found = Candidates(image, cells, classes, heat[image, cells, classes])
    if len(image) > limit:
        order = torch.argsort(found.scores, descending=True, stable=True)
        order = order[torch.argsort(image[order], stable=True)]  # by image, then score
        rank = torch.arange(len(order), device=order.device) - torch.searchsorted(image, image[order])
        found = found[order[rank < limit].sort().values]
    return found


def resize_masks(
    masks: torch.Tensor, padded_size: tuple[int, int], image_size: tuple[int, int], output_size: tuple[int, int], threshold: float
) -> torch.Tensor:
    """Soft masks (n, h, w) of the padded image -> binary masks (n, H, W) of the original one (METHOD 1.5.6).

    Args:
        masks: probabilities at any stride.
        padded_size: (Hp, Wp) of the network's input.
        image_size: the part of it that is image.
        output_size: (H, W) of the original image.
        threshold: above which a pixel is set.
    """
    binary = torch.empty((len(masks), *output_size), dtype=torch.bool, device=masks.device)
    pixels = padded_size[0] * padded_size[1] + output_size[0] * output_size[1]
    step = max(1, _CHUNK_BYTES // (4 * pixels))
    for start in range(0, len(masks), step):
        soft = _bilinear(masks[start : start + step], padded_size)[:, : image_size[0], : image_size[1]]
        binary[start : start + step] = _bilinear(soft, output_size) > threshold
    return binary


def _bilinear(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if masks.shape[-2:] == tuple(size):
        return masks
    return F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


@dataclass
class _CellMasks:
    """Masks of the U cells of one image that are candidates, at the output size of level 0."""

    soft: torch.Tensor  # (U, h, w) float32 probabilities
    binary: torch.Tensor  # (U, h, w) bool
    maskness: torch.Tensor  # (U,) mean probability inside the binary mask
    large: torch.Tensor  # (U,) bool: more pixels than the stride of the cell's level


class SOLOInference:
    """Turns SOLO's outputs into instances (METHOD 1.5)."""

    @configurable
    def __init__(
        self,
        *,
        score_thresh: float = 0.1,
        mask_thresh: float = 0.5,
        nms_pre: int = 500,
        nms_kernel: str = "gaussian",
        nms_sigma: float = 2.0,
        update_thresh: float = 0.05,
        max_per_image: int = 100,
        min_part: float = 0.0,
    ):
        """
        Args:
            score_thresh: category score above which a cell is a candidate.
            mask_thresh: probability above which a pixel is in the mask.
            nms_pre: candidates that enter Matrix NMS. At most twice as many are given a mask at all, which bounds memory.
            nms_kernel, nms_sigma: see :func:`solotrack.ops.matrix_nms.matrix_nms`.
            update_thresh: smallest score after Matrix NMS.
            max_per_image: instances kept.
            min_part: share of its largest connected part that another part of a mask needs to stay; 0 = all stay.
        """
        self.score_thresh = score_thresh
        self.mask_thresh = mask_thresh
        self.nms_pre = nms_pre
        self.nms_kernel = nms_kernel
        self.nms_sigma = nms_sigma
        self.update_thresh = update_thresh
        self.max_per_image = max_per_image
        self.min_part = min_part

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        solo = cfg.MODEL.SOLO
        return {
            "score_thresh": solo.SCORE_THRESH,
            "mask_thresh": solo.MASK_THRESH,
            "nms_pre": solo.NMS_PRE,
            "nms_kernel": solo.NMS_KERNEL,
            "nms_sigma": solo.NMS_SIGMA,
            "update_thresh": solo.UPDATE_THRESH,
            "max_per_image": solo.MAX_PER_IMAGE,
            "min_part": solo.MIN_PART,
        }

    @torch.no_grad()
    def __call__(
        self,
        head: SOLOHead,
        features: Sequence[torch.Tensor],
        category_scores: torch.Tensor,
        image_sizes: Sequence[tuple[int, int]],
        output_sizes: Sequence[tuple[int, int]],
        padded_size: tuple[int, int],
        with_clusters: bool = False,
    ) -> list[Instances]:
        """Instances of a batch.

        The mask branch runs only on levels that have a candidate, its last convolution only for the candidates' cells.

        Args:
            head: SOLO's head.
            features: rescaled feature maps, one (N, Cin, h, w) a level.
            category_scores: (N, R, C) probabilities.
            image_sizes: (H, W) of each image within the padded batch.
            output_sizes: (H, W) of each original image.
            padded_size: (Hp, Wp) of the batch.
            with_clusters: also give the field ``cluster_cells``, for :func:`embedding_cells`.

        Returns:
            for each image, Instances of its original size by descending score: ``pred_masks`` (n, H, W) bool, none empty, ``pred_boxes``
            (tight), ``scores``, ``pred_classes`` and ``cell_indices`` (n,) int64, the cell over all levels that made the instance; with
            clusters ``cluster_cells`` (n, k) int64, that cell and those of the candidates it suppressed, filled up with -1.
        """
        results = []
        for image, (kept, soft, clusters) in enumerate(self.select(head, features, category_scores, padded_size, with_clusters)):
            if self.min_part > 0:
                soft = drop_small_parts(soft, self.mask_thresh, self.min_part)
            pred_masks = resize_masks(soft, padded_size, image_sizes[image], output_sizes[image], self.mask_thresh)
            instances = Instances(output_sizes[image])
            instances.pred_masks = pred_masks
            instances.pred_boxes = Boxes(masks_to_boxes(pred_masks))
            instances.scores = kept.scores
            instances.pred_classes = kept.classes
            instances.cell_indices = kept.cells
            if with_clusters:
                instances.cluster_cells = clusters
            visible = instances.pred_boxes.nonempty()
            results.append(instances if visible.all() else instances[visible])
        return results

    @torch.no_grad()
    def select(
        self,
        head: SOLOHead,
        features: Sequence[torch.Tensor],
        category_scores: torch.Tensor,
        padded_size: tuple[int, int],
        with_clusters: bool = False,
    ) -> Iterator[tuple[Candidates, torch.Tensor, torch.Tensor | None]]:
        """What is kept of each image, by descending score, before masks are brought to the image's size; arguments as for a call.

        Yields:
            candidates (n), their soft masks (n, h, w) at the output size of level 0 and, with clusters, ``cluster_cells`` (n, k).
        """
        num_images, num_cells = category_scores.shape[:2]
        found = find_candidates(category_scores.float(), head.num_grids, self.score_thresh, limit=2 * self.nms_pre)
        # A cell that fires for several classes has one mask.
        keys, mask_index = torch.unique_consecutive(found.image * num_cells + found.cells, return_inverse=True)
        images = torch.arange(num_images, device=keys.device)[:, None]
        key_bounds = torch.searchsorted(keys, images * num_cells + torch.tensor(head.level_offsets, device=keys.device))  # (N, L + 1)
        bounds = torch.searchsorted(mask_index, key_bounds[:, [0, -1]])  # (N, 2) of each image's candidates
        key_bounds, bounds = key_bounds.tolist(), bounds.tolist()

        levels = [level for level in range(len(head.num_grids)) if any(b[level] < b[level + 1] for b in key_bounds)]
        mask_features = dict(zip(levels, head.mask_features(features, levels), strict=True))
        mask_size = (2 * padded_size[0] // head.strides[0], 2 * padded_size[1] // head.strides[0])
        for image in range(num_images):
            cells = {
                level: keys[first:last] - (image * num_cells + head.level_offsets[level])
                for level, (first, last) in enumerate(pairwise(key_bounds[image]))
                if first < last
            }
            masks = self._cell_masks(
                head, {level: mask_features[level][image] for level in cells}, cells, mask_size, category_scores.device
            )
            candidates = slice(*bounds[image])
            kept, rows, clusters = self._select(found[candidates], mask_index[candidates] - key_bounds[image][0], masks, with_clusters)
            yield kept, masks.soft[rows], clusters

    def _cell_masks(
        self,
        head: SOLOHead,
        mask_features: dict[int, torch.Tensor],
        cells: dict[int, torch.Tensor],
        size: tuple[int, int],
        device: torch.device,
    ) -> _CellMasks:
        """Masks of one image's cells. Both dicts are by level, ascending: mask features (channels, h, w), cells (u,) within the level."""
        total = sum(len(c) for c in cells.values())
        masks = _CellMasks(
            soft=torch.empty((total, *size), device=device),
            binary=torch.empty((total, *size), device=device, dtype=torch.bool),
            maskness=torch.empty(total, device=device),
            large=torch.empty(total, device=device, dtype=torch.bool),
        )
        start = 0
        for level, level_cells in cells.items():
            part = slice(start, start + len(level_cells))
            soft = _bilinear(head.mask_logits(mask_features[level], level, level_cells).float().sigmoid(), size)
            binary = soft > self.mask_thresh
            areas = mask_areas(binary)
            masks.soft[part] = soft
            masks.binary[part] = binary
            masks.maskness[part] = torch.where(binary, soft, 0).sum((1, 2)) / areas.clamp(min=1)
            masks.large[part] = areas > head.strides[level]
            start = part.stop
        return masks

    def _select(
        self, found: Candidates, rows: torch.Tensor, masks: _CellMasks, with_clusters: bool
    ) -> tuple[Candidates, torch.Tensor, torch.Tensor | None]:
        """Size filter, maskness and Matrix NMS of one image's candidates.

        Args:
            found: n candidates.
            rows: (n,) the mask of each.
            masks: of the image.
            with_clusters: whether to name the suppressed.

        Returns:
            the kept candidates by descending score, their rows and, with clusters, the cells (k, c) each stands for, filled up with -1.
        """
        large = masks.large[rows].nonzero()[:, 0]
        found, rows = found[large], rows[large]
        found.scores = found.scores * masks.maskness[rows]
        order = torch.argsort(found.scores, descending=True, stable=True)[: self.nms_pre]
        found, rows = found[order], rows[order]
        binary = masks.binary[rows]
        decayed = matrix_nms(binary, found.classes, found.scores, kernel=self.nms_kernel, sigma=self.nms_sigma)
        order = torch.argsort(decayed, descending=True, stable=True)
        order = order[decayed[order] >= self.update_thresh][: self.max_per_image]
        kept = found[order]
        kept.scores = decayed[order]
        return kept, rows[order], _clusters(binary, found, order) if with_clusters else None


def _clusters(binary: torch.Tensor, found: Candidates, kept: torch.Tensor) -> torch.Tensor:
    """Cells (k, c) of each kept candidate and of the worse ones of its class with mask IoU > 0.5 that were not kept; filled up with -1.

    ``kept`` (k,) indexes ``found``, which is sorted by score before suppression.
    """
    rank = torch.arange(len(found.cells), device=kept.device)
    gone = torch.ones_like(rank, dtype=torch.bool)
    gone[kept] = False
    member = (mask_iou(binary[kept], binary) > _CLUSTER_IOU) & (found.classes[kept, None] == found.classes) & gone & (rank > kept[:, None])
    size = int(member.sum(1).max()) if len(kept) else 0
    first = torch.argsort(member, dim=1, descending=True, stable=True)[:, :size]  # members before the others
    cells = torch.where(member.gather(1, first), found.cells[first], -1)
    return torch.cat([found.cells[kept, None], cells], dim=1)


def embedding_cells(
    mode: str,
    instances: Instances,
    *,
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
    num_grids: Sequence[int],
    scale_ranges: Sequence[Sequence[float]],
    sigma: float,
    pool_levels: str = "all",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cells whose mean embedding stands for each detection (METHOD 5.2).

    Args:
        mode: "cell", the cell that made it; "center_region", the cells a ground truth with this mask would train (METHOD 1.3, without
            overwriting), or the cell that made it where there is none; "cluster", that cell and those it suppressed.
        instances: n detections of :class:`SOLOInference`, for "cluster" made ``with_clusters``.
        image_size, padded_size: (H, W) of the image and of the batch as the network saw them.
        num_grids, scale_ranges, sigma: as in training, see :func:`grid_cells`.
        pool_levels: "center_region" only: cells of "all" levels or, "per_level", of the level that made the detection.

    Returns:
        cells: (n, k) int64, over all levels, 0 where not valid, so that it can be gathered.
        valid: (n, k) bool, at least one in each row.

    Raises:
        ValueError: an unknown mode, or "cluster" without clusters.
    """
    own = instances.cell_indices[:, None]
    if mode == "cell":
        return own, torch.ones_like(own, dtype=torch.bool)
    if mode == "cluster":
        if not instances.has("cluster_cells"):
            raise ValueError("Reading embeddings from clusters needs the field cluster_cells; run SOLOInference with with_clusters=True.")
        cells = instances.cluster_cells
        return cells.clamp(min=0), cells >= 0
    if mode != "center_region":
        raise ValueError(
            f"There is no way {mode!r} to read an embedding; use 'cell', 'center_region' or 'cluster' (MODEL.SOLO_TRACK.EMB_READ)."
        )
    scale = torch.tensor(
        [image_size[1] / instances.image_size[1], image_size[0] / instances.image_size[0]], device=own.device, dtype=torch.float64
    )
    boxes = instances.pred_boxes.tensor
    centers = (centers_of_mass(instances.pred_masks) + 0.5) * scale - 0.5  # pixel centres of the original image -> of the network's
    cells, valid, _ = grid_cells(centers, (boxes[:, 2:] - boxes[:, :2]) * scale, padded_size, num_grids, scale_ranges, sigma)
    if pool_levels == "per_level":
        ends = torch.tensor([s * s for s in num_grids], device=own.device).cumsum(0)
        level = torch.searchsorted(ends, own, right=True)  # (n, 1)
        valid &= (torch.arange(len(ends), device=own.device) == level)[..., None]
    cells = torch.where(valid, cells, 0).flatten(1)
    valid = valid.flatten(1)
    missing = ~valid.any(1, keepdim=True)
    return torch.cat([torch.where(missing, own, 0), cells], dim=1), torch.cat([missing, valid], dim=1)
