"""MaskTrack R-CNN's track head: embeddings of boxes, and the loss that tells which box of another frame is the same object, METHOD 7.1
(Yang et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from ..ops.similarity import pairwise_similarity

__all__ = ["TrackHead", "association_loss"]


class TrackHead(nn.Module):
    """RoIAlign of a box, then fully connected layers with ReLU between them; the last one's output is the embedding."""

    @configurable
    def __init__(
        self, *, in_features: Sequence[str], pooler: ROIPooler, in_channels: int, resolution: int, num_fc: int = 2, fc_dim: int = 1024
    ) -> None:
        """
        Args:
            in_features: names of the feature maps that ``pooler`` takes, in its order.
            pooler: crops boxes to (``in_channels``, ``resolution``, ``resolution``).
            num_fc: number of layers.
            fc_dim: outputs of each, and so D.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.pooler = pooler
        sizes = [in_channels * resolution**2] + [fc_dim] * num_fc
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict:
        head, names = cfg.MODEL.TRACK_HEAD, cfg.MODEL.ROI_HEADS.IN_FEATURES
        scales = [1.0 / input_shape[name].stride for name in names]
        return {
            "in_features": names,
            "pooler": ROIPooler(head.POOLER_RESOLUTION, scales, head.POOLER_SAMPLING_RATIO, "ROIAlignV2"),
            "in_channels": input_shape[names[0]].channels,
            "resolution": head.POOLER_RESOLUTION,
            "num_fc": head.NUM_FC,
            "fc_dim": head.FC_DIM,
        }

    def forward(self, features: Mapping[str, torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Embeddings (M, D) of all images' boxes one after the other, from feature maps of N images and N sets of boxes."""
        x = self.pooler([features[name] for name in self.in_features], boxes).flatten(1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def association_loss(
    embeddings: torch.Tensor, ids: Sequence[torch.Tensor], reference_embeddings: torch.Tensor, reference_ids: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Cross-entropy of finding each box among the objects of its image's reference frame, or finding it new.

    The logits of a box are its dot products with the reference objects and a 0 for "new object". The loss is averaged over the boxes of
    an image and then over the images that have boxes and a reference with objects; 0, with gradients, where no image has.

    Args:
        embeddings: (P, D) of boxes, image by image.
        ids: for each of N images, the tracks (P_n,) of its boxes.
        reference_embeddings: (M, D) of the reference frames' objects, image by image.
        reference_ids: for each image, the tracks (M_n,) of its reference's objects, all different. Equal tracks of different images have
            nothing to do with one another.
    """
    counts = [len(x) if len(y) else 0 for x, y in zip(ids, reference_ids, strict=True)]
    images = sum(count > 0 for count in counts)
    if images == 0:
        return (embeddings.sum() + reference_embeddings.sum()) * 0.0
    device = embeddings.device
    image = _image_of([len(x) for x in ids], device)  # (P,)
    reference_image = _image_of([len(x) for x in reference_ids], device)  # (M,)
    same_image = image[:, None] == reference_image[None]
    logits = pairwise_similarity(embeddings, reference_embeddings).masked_fill(~same_image, -torch.inf)  # (P, M)
    logits = torch.cat((logits.new_zeros(len(logits), 1), logits), dim=1)

    same = same_image & (torch.cat(list(ids))[:, None] == torch.cat(list(reference_ids))[None])
    target = torch.where(same.any(dim=1), same.int().argmax(dim=1) + 1, 0)
    share = torch.tensor([1.0 / (count * images) if count else 0.0 for count in counts], device=device)  # of each box of an image
    return (F.cross_entropy(logits, target, reduction="none") * share[image]).sum()


def _image_of(counts: Sequence[int], device: torch.device) -> torch.Tensor:
    """Number of the image for each of the boxes of images that have ``counts`` boxes."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
