"""MaskTrack R-CNN: Mask R-CNN with a fourth head for a tracking embedding, METHOD 7.1 (Yang et al., ICCV 2019; the paper's Table 3)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import ImageList, Instances

from ..track_head import TrackHead, association_loss

__all__ = ["MaskTrackRCNN"]


@META_ARCH_REGISTRY.register()
class MaskTrackRCNN(GeneralizedRCNN):
    """Instance segmentation and a tracking embedding for every box; learns from pairs of frames of labelled videos.

    In training an input has ``image``, ``instances`` and, of another frame of the same video, ``reference`` {image, instances}; both
    instances with ``gt_ids``, the tracks. Detection and masks are learned from the image alone, the embedding by finding its positive
    proposals among the reference's ground-truth boxes. In evaluation it takes single images and returns Detectron2's instances with
    ``embeddings`` (n, D), of the final boxes: trackers that compare by dot product with a null logit of 0 do what it was trained for.
    """

    @configurable
    def __init__(self, *, track_head: TrackHead, track_weight: float = 1.0, channels_last: bool = False, **rcnn) -> None:
        """
        Args:
            track_head: embeds boxes.
            track_weight: of the association loss.
            channels_last: memory format of the network.
            rcnn: the arguments of ``GeneralizedRCNN``.
        """
        super().__init__(**rcnn)
        self.track_head = track_head
        self.track_weight = track_weight
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        rcnn = super().from_config(cfg)
        return rcnn | {
            "track_head": TrackHead(cfg, rcnn["backbone"].output_shape()),
            "track_weight": cfg.MODEL.TRACK_HEAD.LOSS_WEIGHT,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
        }

    @property
    def in_features(self) -> set[str]:
        """Names of the backbone's outputs that a head reads."""
        return {*self.proposal_generator.in_features, *self.roi_heads.in_features, *self.track_head.in_features}

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """See the class."""
        if not self.training:
            return self.inference(batched_inputs)
        n = len(batched_inputs)
        both = batched_inputs + [x["reference"] for x in batched_inputs]
        images = self.preprocess_image(both)
        truth = [x["instances"].to(self.device) for x in both]
        features = self.backbone(images.tensor)  # of the frames, then of their references
        references = {name: x[n:] for name, x in features.items()}
        features = {name: x[:n] for name, x in features.items()}
        images = ImageList(images.tensor[:n], images.image_sizes[:n])

        proposals, losses = self.proposal_generator(images, features, truth[:n])
        features, references = _for_boxes(features), _for_boxes(references)
        proposals, roi_losses = self.roi_heads(images, features, proposals, truth[:n])
        return losses | roi_losses | {"loss_track": self.track_weight * self._track_loss(features, proposals, references, truth[n:])}

    def _track_loss(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        reference_features: dict[str, torch.Tensor],
        references: list[Instances],
    ) -> torch.Tensor:
        """Association loss of the positive among the proposals that the other heads were trained on."""
        positive, _ = select_foreground_proposals(proposals, self.roi_heads.num_classes)
        # an image without ground truth has no positive proposals, and these no ids
        ids = [x.gt_ids if x.has("gt_ids") else x.gt_classes for x in positive]
        return association_loss(
            self.track_head(features, [x.proposal_boxes for x in positive]),
            ids,
            self.track_head(reference_features, [x.gt_boxes for x in references]),
            [x.gt_ids for x in references],
        )

    def inference(
        self, batched_inputs: list[dict], detected_instances: list[Instances] | None = None, do_postprocess: bool = True
    ) -> list[dict] | list[Instances]:
        """As ``GeneralizedRCNN.inference``, with ``embeddings``."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is None:
            proposals, _ = self.proposal_generator(images, features, None)
            features = _for_boxes(features)
            results, _ = self.roi_heads(images, features, proposals, None)
        else:
            features = _for_boxes(features)
            results = self.roi_heads.forward_with_given_boxes(features, [x.to(self.device) for x in detected_instances])
        embeddings = self.track_head(features, [x.pred_boxes for x in results]).float()
        for instances, part in zip(results, embeddings.split([len(x) for x in results]), strict=True):
            instances.embeddings = part
        return self._postprocess(results, batched_inputs, images.image_sizes) if do_postprocess else results

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        images = super().preprocess_image(batched_inputs)
        return ImageList(images.tensor.contiguous(memory_format=self.memory_format), images.image_sizes)


def _for_boxes(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Features to crop boxes from: RoIAlign rounds boxes to their type, and in bfloat16 639 is 640."""
    return {name: x.float() if x.dtype == torch.bfloat16 else x for name, x in features.items()}
