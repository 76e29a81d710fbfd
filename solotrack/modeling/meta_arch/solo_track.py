"""SOLO with a third head for a tracking embedding (paper Fig. 2)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F

from ...config import ConfigError
from ...ops.similarity import NORM_EPS
from ..correspondence.video_branch import ClipLosses, ClipNodes, VideoBranch
from ..embedding.head import EmbeddingHead
from ..embedding.instance_contrastive import InstanceContrastiveLoss
from ..solo.head import SOLO_HEADS, SOLOHead
from ..solo.inference import SOLOInference, embedding_cells
from ..solo.losses import category_loss, mask_loss
from ..solo.targets import GridTargets, assign_grid_targets

__all__ = ["Features", "SOLOTrack"]


class Features(NamedTuple):
    """What the heads read of N images.

    Attributes:
        levels: FPN's maps at the strides of the category and mask branches, (N, Cin, Hp/stride, Wp/stride) a level.
        for_embedding: the embedding head's for each level: the same, or the map of the bottom-up stage that it reads.
    """

    levels: list[torch.Tensor]
    for_embedding: list[torch.Tensor]


@contextmanager
def _outputs_of(module: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collects the named outputs of a module that others call."""
    found: dict[str, torch.Tensor] = {}
    handle = module.register_forward_hook(lambda _module, _inputs, outputs: found.update(outputs))
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _running_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers that are in training normalise by their running statistics, and leave these alone."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training]
    try:
        for layer in layers:
            layer.eval()
        yield
    finally:
        for layer in layers:
            layer.train()


@META_ARCH_REGISTRY.register()
class SOLOTrack(nn.Module):
    """Instance segmentation and a tracking embedding for every grid cell.

    In training it takes Detectron2's ``list[dict]``, of labelled images (with ``image``) and unlabelled clips (with ``frames``), and
    returns a dict of losses, one entry for each term that is switched on. In evaluation it returns ``[{"instances": Instances}, ...]``:
    masks, boxes, scores and classes at the original image size, ``cell_indices`` and, with an embedding head, ``embeddings`` (n, D).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: list[str],
        head: SOLOHead,
        inference: SOLOInference,
        scale_ranges: list[list[float]],
        sigma: float,
        focal: tuple[float, float],
        category_weight: float,
        mask_weight: float,
        embedding_head: EmbeddingHead | None,
        embedding_loss: InstanceContrastiveLoss | None,
        video_branch: VideoBranch | None,
        embedding_stage: str,
        embedding_read: str,
        pool_levels: str,
        views: int,
        freeze_detector: bool,
        pixel_mean: list[float],
        pixel_std: list[float],
        channels_last: bool,
    ) -> None:
        """
        Args:
            backbone: an FPN whose outputs hold ``in_features``.
            head: category and mask branches.
            inference: from scores and mask rows to instances.
            scale_ranges: [smallest, largest] sqrt(box area) in pixels that each level takes.
            sigma: share of the box around the centre of mass that is positive.
            focal: alpha and gamma of the category loss.
            category_weight, mask_weight: of the two losses.
            embedding_head: the tracking head, or None for plain SOLO.
            embedding_loss: its image losses, or None.
            video_branch: learns from unlabelled clips, or None.
            embedding_stage: of the backbone's bottom-up network, which the embedding heads read; "" = the maps of ``in_features``.
            embedding_read: cells a detection's embedding is the mean of, see ``embedding_cells``.
            pool_levels: "all" or "per_level", as the embedding was trained.
            views: 2 when every training image brings a ``second_view``.
            freeze_detector: train the embedding head alone.
            pixel_mean, pixel_std: of a channel, in grey levels, in the order of INPUT.FORMAT.
            channels_last: memory format of the network.
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = in_features
        self.head = head
        self.inference = inference
        self.scale_ranges = scale_ranges
        self.sigma = sigma
        self.focal = focal
        self.category_weight = category_weight
        self.mask_weight = mask_weight
        self.embedding_head = embedding_head
        self.embedding_loss = embedding_loss
        self.video_branch = video_branch
        self.embedding_stage = embedding_stage
        self.embedding_read = embedding_read
        self.pool_levels = pool_levels
        self.views = views
        self.freeze_detector = freeze_detector
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        if freeze_detector:
            for module in (self.backbone, self.head):
                module.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        if cfg.MODEL.BACKBONE.NAME not in BACKBONE_REGISTRY:
            raise ConfigError(f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME!r}, which is no registered backbone.")
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        missing = [name for name in cfg.MODEL.SOLO.IN_FEATURES if name not in shapes]
        if missing:
            raise ConfigError(f"MODEL.SOLO.IN_FEATURES names {missing[0]}, which the backbone does not have; it has {', '.join(shapes)}.")
        solo, emb = cfg.MODEL.SOLO, cfg.MODEL.SOLO_TRACK.EMB
        if emb.ENABLED and emb.STAGE:
            stages = backbone.bottom_up.output_shape() if hasattr(backbone, "bottom_up") else {}
            if emb.STAGE not in stages:
                raise ConfigError(
                    f"MODEL.SOLO_TRACK.EMB.STAGE is {emb.STAGE!r}, no stage of the bottom-up network; it has {', '.join(stages) or 'none'}."
                )
            shapes = shapes | stages
        return {
            "backbone": backbone,
            "in_features": list(cfg.MODEL.SOLO.IN_FEATURES),
            "head": SOLO_HEADS[cfg.MODEL.SOLO.TYPE](cfg, shapes),
            "inference": SOLOInference(cfg),
            "scale_ranges": solo.SCALE_RANGES,
            "sigma": solo.SIGMA,
            "focal": (solo.FOCAL_ALPHA, solo.FOCAL_GAMMA),
            "category_weight": solo.CATE_LOSS_WEIGHT,
            "mask_weight": solo.MASK_LOSS_WEIGHT,
            "embedding_head": EmbeddingHead(cfg, shapes) if emb.ENABLED else None,
            "embedding_loss": InstanceContrastiveLoss(cfg) if emb.ENABLED else None,
            "video_branch": VideoBranch(cfg, shapes) if cfg.MODEL.SOLO_TRACK.VIDEO.ENABLED else None,
            "embedding_stage": emb.STAGE if emb.ENABLED else "",
            "embedding_read": cfg.MODEL.SOLO_TRACK.EMB_READ,
            "pool_levels": emb.POOL_LEVELS,
            "views": emb.VIEWS if emb.ENABLED else 1,
            "freeze_detector": cfg.MODEL.SOLO.FREEZE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> SOLOTrack:
        super().train(mode)
        if self.freeze_detector:
            self.backbone.eval()  # BatchNorm statistics stay as they are
            self.head.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """See the class; an input has ``image`` (3, H, W) uint8 and, in training, ``instances`` (and ``second_view`` when views are 2)."""
        if not self.training:
            return self.predict(batched_inputs)
        labelled = [x for x in batched_inputs if "image" in x]
        clips = [x for x in batched_inputs if "frames" in x]
        losses = {}
        if labelled:
            batch = labelled + [x["second_view"] for x in labelled] if self.views == 2 else labelled
            losses |= self.losses(self.preprocess(batch), [x["instances"].to(self.device) for x in batch])
        if clips:
            storage = get_event_storage()
            number: dict[str, int] = {}  # of each video
            videos = [number.setdefault(clip["video"], len(number)) for clip in clips] if self.video_branch.pseudo_weight > 0 else None
            found = self.clip_losses(clips, videos)
            cycle_weight, identity_weight = self.video_branch.weights(storage.iter)
            losses["loss_cycle"] = cycle_weight * found.cycle
            storage.put_scalar("video/nodes_per_frame", found.nodes)
            if found.identity is not None:
                losses["loss_identity"] = identity_weight * found.identity
                storage.put_scalar("video/links_per_frame", found.links)
        return losses

    def clip_losses(self, clips: list[dict], videos: list[int] | None = None, unmatched: str = "") -> ClipLosses:
        """What unlabelled clips say, not weighted (paper §3.4).

        BatchNorm layers read their running statistics here, as they do when videos are tracked.

        Args:
            clips: ``frames`` of each are (3, H, W) uint8.
            videos: a number for each clip, equal for clips of one video; None leaves pseudo identities out.
            unmatched: mode of ``cycle_loss`` in place of the video branch's; "" keeps that.

        Raises:
            ValueError: clips of one frame, or no such mode.
        """
        features, padded_size = self._clip_features(clips)
        return self.video_branch.losses(
            features.levels,
            features.for_embedding,
            len(clips[0]["frames"]),
            padded_size,
            self.head,
            self.inference,
            self.embedding_head,
            None if videos is None else torch.tensor(videos, device=self.device),
            unmatched,
        )

    @torch.no_grad()
    def clip_embeddings(self, clips: list[dict], nodes: ClipNodes | None = None) -> tuple[torch.Tensor, ClipNodes]:
        """The tracking embeddings of the instances of B unlabelled clips (METHOD 3.2), each read at the cell that stands for it.

        Args:
            clips: as for :meth:`clip_losses`, F frames each.
            nodes: read these, found before in the same clips; None finds them.

        Returns:
            (B, F, n, D) embeddings of up to n instances a frame, and where they stand.
        """
        features, padded_size = self._clip_features(clips)
        if nodes is None:
            nodes = self.video_branch.find_nodes(features.levels, len(clips[0]["frames"]), padded_size, self.head, self.inference)
        return nodes.read(self._tracking_embeddings(features)), nodes

    def _tracking_embeddings(self, features: Features) -> torch.Tensor:
        """The image head's, float32 (N, R, D) of all cells; of length 1 where its losses compare cosines, before cells are averaged."""
        embeddings = self.embedding_head(features.for_embedding).float()
        return F.normalize(embeddings, dim=2, eps=NORM_EPS) if self.embedding_loss.metric == "cosine" else embeddings

    def _clip_features(self, clips: list[dict]) -> tuple[Features, tuple[int, int]]:
        """What the heads read of the clips' frames, one clip after the other, and the frames' padded size."""
        images = self.preprocess([{"image": frame} for clip in clips for frame in clip["frames"]])
        with _running_statistics(self.backbone):
            return self.features(images), tuple(images.tensor.shape[-2:])

    def initialise_missing(self, names: Collection[str]) -> set[str]:
        """Give parameters that a checkpoint does not have the values of others that it has, and tell which.

        The video branch of weights that were trained on images alone starts as a copy of the image head (METHOD 3.4). A queue of negatives
        is empty to begin with.
        """
        ready = {name for name in names if name.startswith("embedding_loss.queue.")}
        branch = self.video_branch
        own = set() if branch is None or branch.head is None else {f"video_branch.head.{key}" for key in branch.head.state_dict()}
        if not own or not branch.init_from_image or not own <= set(names):
            return ready
        branch.head.load_state_dict(self.embedding_head.state_dict())
        return ready | own

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise and pad to the largest image of the batch, a multiple of the backbone's divisibility; padding is the mean colour."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        padding = ImageList.from_tensors(images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints)
        return ImageList(padding.tensor.contiguous(memory_format=self.memory_format), padding.image_sizes)

    def features(self, images: ImageList) -> Features:
        """What backbone and FPN make of N preprocessed images (N, 3, Hp, Wp), for all heads."""
        with _outputs_of(self.backbone.bottom_up) if self.embedding_stage else nullcontext({}) as stages:
            features = self.backbone(images.tensor)
        levels = self.head.rescale([features[name] for name in self.in_features], tuple(images.tensor.shape[-2:]))
        return Features(levels, [stages[self.embedding_stage]] * len(levels) if self.embedding_stage else levels)

    def assign(self, instances: list[Instances], padded_size: tuple[int, int]) -> GridTargets:
        """Grid targets of a batch whose images are padded to ``padded_size`` (Hp, Wp)."""
        head = self.head
        return assign_grid_targets(instances, padded_size, head.num_grids, head.strides, self.scale_ranges, self.sigma, head.num_classes)

    def losses(self, images: ImageList, instances: list[Instances]) -> dict[str, torch.Tensor]:
        """Weighted losses of a normalised batch and its ground truths."""
        with torch.set_grad_enabled(not self.freeze_detector):
            features = self.features(images)
        targets = self.assign(instances, tuple(images.tensor.shape[-2:]))
        losses = {}
        if not self.freeze_detector:
            logits = self.head.category_logits(features.levels)  # (N, R, C)
            losses["loss_category"] = self.category_weight * category_loss(logits, targets.classes, *self.focal)
            losses["loss_mask"] = self.mask_weight * mask_loss(self.head, features.levels, targets)
        if self.embedding_head is not None:
            embeddings = self.embedding_head(features.for_embedding)  # (N, R, D)
            gt_ids = [x.gt_ids for x in instances]
            losses.update(self.embedding_loss(embeddings, targets.instance_index, gt_ids, self.views, get_event_storage().iter))
        return losses

    def predict(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections of a batch of images; ``height`` and ``width`` of an input are those of the original image."""
        images = self.preprocess(batched_inputs)
        padded_size = tuple(images.tensor.shape[-2:])
        features = self.features(images)
        sizes = [(x.get("height", size[0]), x.get("width", size[1])) for x, size in zip(batched_inputs, images.image_sizes, strict=True)]
        scores = self.head.category_logits(features.levels).float().sigmoid()  # half precision would make ties for point NMS
        clusters = self.embedding_head is not None and self.embedding_read == "cluster"
        results = self.inference(self.head, features.levels, scores, images.image_sizes, sizes, padded_size, with_clusters=clusters)
        if self.embedding_head is not None:
            embeddings = self._tracking_embeddings(features)
            for image_embeddings, image_size, instances in zip(embeddings, images.image_sizes, results, strict=True):
                instances.embeddings = self._read(image_embeddings, instances, image_size, padded_size)
        return [{"instances": x} for x in results]

    def _read(
        self, embeddings: torch.Tensor, instances: Instances, image_size: tuple[int, int], padded_size: tuple[int, int]
    ) -> torch.Tensor:
        """Mean embedding (n, D) of each detection's cells, from those of all cells (R, D)."""
        cells, valid = embedding_cells(
            self.embedding_read,
            instances,
            image_size=image_size,
            padded_size=padded_size,
            num_grids=self.head.num_grids,
            scale_ranges=self.scale_ranges,
            sigma=self.sigma,
            pool_levels=self.pool_levels,
        )
        weight = valid[..., None].to(embeddings.dtype)
        return (embeddings[cells] * weight).sum(dim=1) / weight.sum(dim=1)
