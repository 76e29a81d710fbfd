"""SipMask-VIS: one-stage instance segmentation on FCOS, with a tracking map, METHOD 7.2 (Cao et al., ECCV 2020; the paper's Table 3)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from torch.nn import functional as F

from ...config import ConfigError
from ...ops.fast_nms import fast_nms
from ..sipmask.head import SipMaskHead, SipMaskPredictions
from ..sipmask.masks import assemble_masks, box_mask_loss, read_points
from ..solo.inference import resize_masks
from ..solo.losses import category_loss
from ..track_head import association_loss

__all__ = ["SipMaskVIS"]


@META_ARCH_REGISTRY.register()
class SipMaskVIS(FCOS):
    """Instance segmentation and a tracking embedding for every box; learns from pairs of frames of labelled videos.

    In training an input has ``image``, ``instances`` and, of another frame of the same video, ``reference`` {image, instances}; both
    instances with ``gt_ids``, the tracks. Boxes and masks are learned from the image alone, the tracking map by finding the image's
    positive locations among the reference's ground-truth boxes. In evaluation it takes single images and returns Instances of the original
    size with ``pred_boxes``, ``pred_masks`` (n, H, W) bool, ``scores``, ``pred_classes`` and ``embeddings`` (n, D), read at the boxes'
    centres: trackers that compare by dot product with a null logit of 0 do what it was trained for.
    """

    @configurable
    def __init__(
        self,
        *,
        head: SipMaskHead,
        mask_resolution: int = 28,
        mask_weight: float = 1.0,
        track_weight: float = 1.0,
        track_jitter: float = 0.05,
        channels_last: bool = False,
        **fcos,
    ) -> None:
        """
        Args:
            head: the outputs.
            mask_resolution: points a side of a box at which its mask is learned, even.
            mask_weight, track_weight: of the two losses beside FCOS's.
            track_jitter: largest shift of a reference box's centre, share of its sides.
            channels_last: memory format of the network.
            fcos: the other arguments of ``FCOS``; ``head_in_features`` from the finest level on, ``test_topk_candidates`` of an image.
        """
        super().__init__(head=head, **fcos)
        self.mask_resolution = mask_resolution
        self.mask_weight = mask_weight
        self.track_weight = track_weight
        self.track_jitter = track_jitter
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        sip = cfg.MODEL.SIPMASK
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        missing = [name for name in sip.IN_FEATURES if name not in shapes]
        if missing:
            raise ConfigError(
                f"MODEL.SIPMASK.IN_FEATURES names {missing[0]}, which the backbone does not have; it has {', '.join(shapes)}."
            )
        return {
            "backbone": backbone,
            "head": SipMaskHead(cfg, shapes),
            "head_in_features": list(sip.IN_FEATURES),
            "num_classes": sip.NUM_CLASSES,
            "mask_resolution": sip.MASK_RESOLUTION,
            "mask_weight": sip.MASK_LOSS_WEIGHT,
            "track_weight": sip.TRACK_LOSS_WEIGHT,
            "track_jitter": sip.TRACK_JITTER,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
            "test_score_thresh": sip.SCORE_THRESH,
            "test_topk_candidates": sip.NMS_PRE,
            "test_nms_thresh": sip.NMS_THRESH,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def in_features(self) -> set[str]:
        """Names of the backbone's outputs that the head reads."""
        return set(self.head_in_features)

    @property
    def stride(self) -> int:
        """Pixels a cell of the basis masks and of the tracking map."""
        return self.anchor_generator.strides[0]

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor] | list[dict]:
        """See the class."""
        if not self.training:
            return self.inference(batched_inputs)
        n = len(batched_inputs)
        both = batched_inputs + [x["reference"] for x in batched_inputs]
        truth = [x["instances"].to(self.device) for x in both]
        features = self._features(self.preprocess_image(both))  # of the frames, then of their references
        frames = [x[:n] for x in features]
        predictions = self.head(frames)
        anchors = self.anchor_generator(frames)
        objects = self.match(anchors, truth[:n])  # (N, R)

        classes = torch.cat([*(x.gt_classes for x in truth[:n]), objects.new_tensor([self.num_classes])])
        boxes = torch.cat([*(x.gt_boxes.tensor for x in truth[:n]), torch.zeros(1, 4, device=self.device)])
        losses = self.detection_losses(anchors, predictions, classes[objects], boxes[objects])  # -1, background, is the last

        image, location = (objects >= 0).nonzero(as_tuple=True)
        found = objects[image, location]  # (P,)
        masks = box_mask_loss(
            predictions.basis,
            predictions.coefficients[image, location],
            found,
            [x.gt_boxes for x in truth[:n]],
            [x.gt_masks for x in truth[:n]],
            self.stride,
            self.mask_resolution,
        )
        deltas = predictions.deltas[image, location].detach()
        centers = Boxes(self.box2box_transform.apply_deltas(deltas, Boxes.cat(anchors).tensor[location])).get_centers()
        track = self._track_loss(self.head.track_map(features), image, centers, found, truth)
        return losses | {"loss_mask": self.mask_weight * masks, "loss_track": self.track_weight * track}

    def detection_losses(
        self, anchors: list[Boxes], predictions: SipMaskPredictions, labels: torch.Tensor, boxes: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """FCOS's three losses, divided by the batch's number of positive locations + 1.

        Detectron2 divides by a moving average, which no checkpoint has, and compiles its focal loss while training goes on, which changes
        last digits: a resumed run would not end as an unbroken one.

        Args:
            anchors: of all levels, R together.
            predictions: of N images.
            labels: (N, R) classes, C where background.
            boxes: (N, R, 4) of the object that each positive location is to find.

        Raises:
            FloatingPointError: training has diverged.
        """
        if not torch.isfinite(predictions.deltas).all():  # GIoU waits for the device too, to call these boxes bad
            raise FloatingPointError("Predicted boxes are not finite.")
        positive = labels != self.num_classes
        count = positive.sum() + 1
        centerness = self.compute_ctrness_targets(anchors, list(boxes))[positive]
        location = _dense_box_regression_loss(
            anchors, self.box2box_transform, [predictions.deltas], list(boxes), positive, box_reg_loss_type="giou"
        )
        center = F.binary_cross_entropy_with_logits(predictions.centerness[..., 0][positive], centerness, reduction="sum")
        return {
            "loss_fcos_cls": category_loss(predictions.logits, labels, self.focal_loss_alpha, self.focal_loss_gamma),
            "loss_fcos_loc": location / count,
            "loss_fcos_ctr": center / count,
        }

    @torch.no_grad()
    def match(self, anchors: list[Boxes], instances: list[Instances]) -> torch.Tensor:
        """The object that each location is to find, by FCOS's rules: (N, R) index over all images' objects, -1 for background."""
        rows, first = [], 0
        for x in instances:
            if len(x):
                quality, index = self._match_anchors(x.gt_boxes, anchors).max(dim=0)
                rows.append(torch.where(quality > 0, index + first, -1))
            else:
                rows.append(torch.full((sum(map(len, anchors)),), -1, device=self.device))
            first += len(x)
        return torch.stack(rows)

    def _track_loss(
        self, maps: torch.Tensor, image: torch.Tensor, centers: torch.Tensor, found: torch.Tensor, truth: list[Instances]
    ) -> torch.Tensor:
        """Association loss of the positive locations, read at the centres of the boxes that they predict.

        Args:
            maps: (2·N, D, h, w) tracking maps of the frames, then of their references.
            image, centers, found: (P,) the frame, (P, 2) the centre, (P,) the object over all frames, in the frames' order.
            truth: of the frames, then of their references.
        """
        n = len(truth) // 2
        boxes = torch.cat([x.gt_boxes.tensor for x in truth[n:]])
        shift = (2 * torch.rand(len(boxes), 2, device=boxes.device) - 1) * self.track_jitter
        reference_centers = Boxes(boxes).get_centers() + shift * (boxes[:, 2:] - boxes[:, :2])
        reference_image = torch.repeat_interleave(torch.tensor([len(x) for x in truth[n:]])).to(boxes.device)
        ids = torch.cat([x.gt_ids for x in truth[:n]])[found]
        return association_loss(
            read_points(maps[:n], image, centers, self.stride),
            ids.split(torch.bincount(image, minlength=n).tolist()),
            read_points(maps[n:], reference_image, reference_centers, self.stride),
            [x.gt_ids for x in truth[n:]],
        )

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Detections of a batch of images; ``height`` and ``width`` of an input are those of the original image."""
        images = self.preprocess_image(batched_inputs)
        features = self._features(images)
        predictions, maps = self.head(features), self.head.track_map(features).float()
        anchors = Boxes.cat(self.anchor_generator(features)).tensor  # (R, 4)
        results = []
        for index, (size, x) in enumerate(zip(images.image_sizes, batched_inputs, strict=True)):
            instances, location = self._detect(anchors, predictions, index, size)
            boxes = instances.pred_boxes
            image = torch.full_like(location, index)
            instances.embeddings = read_points(maps, image, boxes.get_centers(), self.stride)
            masks = assemble_masks(predictions.basis[index], predictions.coefficients[index, location], boxes.tensor, self.stride)
            output = (x.get("height", size[0]), x.get("width", size[1]))
            result = Instances(output, **instances.get_fields())
            result.pred_masks = resize_masks(masks, tuple(masks.shape[1:]), size, output, threshold=0.5)
            result.pred_boxes.scale(output[1] / size[1], output[0] / size[0])
            results.append({"instances": result})
        return results

    def _detect(
        self, anchors: torch.Tensor, predictions: SipMaskPredictions, index: int, size: tuple[int, int]
    ) -> tuple[Instances, torch.Tensor]:
        """Boxes of the image ``index`` of a batch that pass threshold and NMS, by descending score, and the locations (n,) that made them.

        A score is the product of the class's probability and centerness.
        """
        scores = predictions.logits[index].sigmoid() * predictions.centerness[index].sigmoid()  # (R, C)
        values, pairs = scores.flatten().topk(min(self.test_topk_candidates, scores.numel()))
        location, classes = pairs // self.num_classes, pairs % self.num_classes
        boxes = Boxes(self.box2box_transform.apply_deltas(predictions.deltas[index, location], anchors[location]))
        boxes.clip(size)
        good = (values > self.test_score_thresh) & boxes.nonempty()
        boxes, values, classes, location = boxes[good], values[good], classes[good], location[good]
        kept = fast_nms(boxes.tensor, values, classes, self.test_nms_thresh)[: self.max_detections_per_image]
        return Instances(size, pred_boxes=boxes[kept], scores=values[kept], pred_classes=classes[kept]), location[kept]

    def _features(self, images: ImageList) -> list[torch.Tensor]:
        features = self.backbone(images.tensor)
        return [features[name] for name in self.head_in_features]

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        images = super().preprocess_image(batched_inputs)
        return ImageList(images.tensor.contiguous(memory_format=self.memory_format), images.image_sizes)
