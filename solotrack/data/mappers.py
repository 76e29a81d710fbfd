"""Dict of a labelled image -> what the model takes: the augmented image with its instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances

from solotrack.ops.masks import masks_to_boxes
from solotrack.ops.rle import decode_rle

from .annotation_file import DatasetError
from .copy_paste import CopyPaste
from .frames import read_frame_image
from .intensity import Stretch
from .views import ColorJitter, RandomSimilarity, RandomView

__all__ = ["ImageMapper"]


class ImageMapper:
    """SOLO's image mapper (METHOD 1.6), or, with two views, one that draws two strong views of every image (METHOD 15).

    The random numbers come from NumPy's global state, as those of Detectron2's transforms do; the training loader seeds it for each sample.
    """

    @configurable
    def __init__(
        self,
        augmentations: list[T.Augmentation],
        image_format: str,
        view: RandomView | None = None,
        num_views: int = 1,
        with_labels: bool = True,
        stretch: Stretch | None = None,
        copy_paste: CopyPaste | None = None,
        paste_prob: float = 0.0,
        paste_source: str = "other",
        donors: Sequence[dict[str, Any]] = (),
    ) -> None:
        """
        Args:
            augmentations: of Detectron2, applied to the image first: crop, resize, flip.
            image_format: "RGB" or "BGR", of the mapped image.
            view: applied after them, drawn anew for each view; None: nothing more is done.
            num_views: 1, or 2 to add ``second_view``.
            stretch: applied to the image as read.
            with_labels: False leaves the annotations out; goes with no ``view`` only.
            copy_paste: pastes instances in, after the augmentations and before the views.
            paste_prob: probability that it does.
            paste_source: "other", instances of one of ``donors``, augmented likewise, or "same", of a ``view`` of the image itself: an
                instance is then there twice, in two places and with two looks, under one id.
            donors: records of the images that "other" takes them from, each equally likely.

        Raises:
            ValueError: a number of views other than 1 or 2, two views that would be equal, or a view without labels.
        """
        if num_views not in (1, 2) or (num_views == 2 and view is None):
            raise ValueError(f"num_views is {num_views}; it must be 1, or 2 with a random view.")
        if view is not None and not with_labels:
            raise ValueError("with_labels is False; a random view is for training and needs the labels.")
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.view = view
        self.num_views = num_views
        self.with_labels = with_labels
        self.stretch = stretch
        self.copy_paste = copy_paste
        self.paste_prob = paste_prob if len(donors) or paste_source == "same" else 0.0
        self.paste_source = paste_source
        self.donors = donors

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True, donors: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        common = {"augmentations": augmentations, "image_format": cfg.INPUT.FORMAT, "stretch": Stretch.from_config(cfg)}
        if not is_train:
            return common | {"with_labels": False}
        if cfg.INPUT.CROP.ENABLED:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        num_views = cfg.MODEL.SOLO_TRACK.EMB.VIEWS
        aug, views = cfg.INPUT.AUG, cfg.INPUT.VIEWS
        if num_views == 2 or aug.STRONG:
            similarity = RandomSimilarity(views.SHIFT, views.SCALE_RANGE, views.ROTATION, views.FLIP)
            view = RandomView([similarity, ColorJitter(views.COLOR, cfg.INPUT.FORMAT)], views.MIN_VISIBLE, views.SCATTER)
        else:
            extra = []
            if tuple(aug.SCALE_RANGE) != (1.0, 1.0):
                extra.append(RandomSimilarity(shift=0.0, scale_range=aug.SCALE_RANGE, rotation=0.0, flip=0.0))
            if aug.COLOR > 0:
                extra.append(ColorJitter(aug.COLOR, cfg.INPUT.FORMAT))
            view = RandomView(extra) if extra else None
        paste = cfg.INPUT.COPY_PASTE
        copy_paste = CopyPaste(paste.MAX_INSTANCES, paste.SCALE_RANGE, paste.MIN_VISIBLE)
        return common | {
            "view": view,
            "num_views": num_views,
            "copy_paste": copy_paste,
            "paste_prob": paste.PROB,
            "paste_source": paste.SOURCE,
            "donors": donors,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            record: Detectron2's standard dict of an image; it is not changed.

        Returns:
            The record without ``annotations``, with ``image`` (3, H, W) uint8 and, with labels, ``instances``: gt_boxes (tight boxes of the
            masks, right and bottom exclusive), gt_classes (M,), gt_masks (BitMasks) and gt_ids (M,), the instance's index in the record's
            annotations; a pasted one of another image has its index there with the number of this record's annotations added. Crowds, and
            instances of which nothing is left, are removed. With two views also ``second_view``: image, instances.

        Raises:
            FrameError: the image file is missing or corrupt.
            DatasetError: the image is not as large as the record says, or an annotation has no mask, or a broken one.
        """
        mapped = {key: value for key, value in record.items() if key != "annotations"}
        image, transforms = self._augmented(mapped)
        if not self.with_labels:
            mapped["image"] = _image_tensor(image)
            return mapped
        annotations = record.get("annotations", [])
        masks, classes, ids = _labels(mapped, annotations, transforms, image.shape[:2])
        if self.paste_prob > 0 and np.random.random() < self.paste_prob:  # noqa: NPY002
            image, masks, classes, ids = self._pasted(record, image, masks, classes, ids)

        views = []
        for _ in range(self.num_views):
            view_image, view_masks, kept = (image, masks, slice(None)) if self.view is None else self.view(image, masks)
            views.append({"image": _image_tensor(view_image), "instances": _instances(view_masks, classes[kept], ids[kept])})
        mapped.update(views[0])
        if self.num_views == 2:
            mapped["second_view"] = views[1]
        return mapped

    def _pasted(
        self, record: dict[str, Any], image: np.ndarray, masks: np.ndarray, classes: np.ndarray, ids: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """A record's augmented image (H, W, 3), masks (M, H, W), classes and ids (M,) with instances pasted in."""
        if self.paste_source == "same":
            other, other_masks, kept = (image, masks, slice(None)) if self.view is None else self.view(image, masks)
            other_classes, other_ids = classes[kept], ids[kept]
        else:
            donor = self.donors[np.random.randint(len(self.donors))]  # noqa: NPY002
            if donor["file_name"] == record["file_name"]:  # two instances that look the same would count as different
                return image, masks, classes, ids
            other, transforms = self._augmented(donor)
            other_masks, other_classes, other_ids = _labels(donor, donor.get("annotations", []), transforms, other.shape[:2])
            other_ids = len(record.get("annotations", [])) + other_ids
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
        image, masks, kept = self.copy_paste(image, masks, other, other_masks, rng)
        return image, masks, np.concatenate([classes, other_classes])[kept], np.concatenate([ids, other_ids])[kept]

    def _augmented(self, record: dict[str, Any]) -> tuple[np.ndarray, T.TransformList]:
        """A record's image (H, W, 3) after the augmentations, and what these did to it; fills in ``height`` and ``width`` where missing."""
        image = read_frame_image(record["file_name"], self.image_format)
        try:
            utils.check_image_size(record, image)
        except utils.SizeMismatchError:
            raise DatasetError(
                f"{record['file_name']} has {image.shape[1]} x {image.shape[0]} pixels (width x height) but the data set's json says "
                f"{record['width']} x {record['height']}; put the right file there, or correct the json."
            ) from None
        augmented = T.AugInput(image if self.stretch is None else self.stretch(image))
        transforms = self.augmentations(augmented)
        return augmented.image, transforms


def _labels(
    record: dict[str, Any], annotations: list[dict[str, Any]], transforms: T.TransformList, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks (M, H, W) uint8 in the augmented image of ``size`` (H, W), classes (M,) and places among the annotations (M,) of a record's
    instances, without crowds and those outside of the image."""
    ids = np.array([i for i, annotation in enumerate(annotations) if not annotation.get("iscrowd", 0)], dtype=np.int64)
    masks = np.zeros((len(ids), *size), dtype=np.uint8)
    for mask, i in zip(masks, ids, strict=True):
        try:
            mask[:] = _transform_segmentation(annotations[i]["segmentation"], record["height"], record["width"], transforms, size)
        except (KeyError, ValueError) as error:
            raise DatasetError(
                f"The annotation number {i} (from 0) of {record['file_name']} has no mask that can be used ({error}); "
                "correct it in the data set's json."
            ) from error
    visible = masks.any(axis=(1, 2))
    ids = ids[visible]
    return masks[visible], np.array([annotations[i]["category_id"] for i in ids], dtype=np.int64), ids


def _image_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _transform_segmentation(
    segmentation: list | dict, height: int, width: int, transforms: T.TransformList, size: tuple[int, int]
) -> np.ndarray:
    """Polygons or RLE of a (height, width) image -> mask (H, W) = size of the augmented image; polygons are moved before they are drawn."""
    if isinstance(segmentation, dict):
        return transforms.apply_segmentation(decode_rle(segmentation, height, width))
    # apply_coords and not apply_polygons, whose crop cuts polygons with shapely: drawing them cuts them just as well
    corners = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
    return decode_rle([transforms.apply_coords(points).reshape(-1) for points in corners], *size)


def _instances(masks: np.ndarray, classes: np.ndarray, ids: np.ndarray) -> Instances:
    """(M, H, W) uint8 masks, 0 or 1, (M,) classes and ids -> training targets, which share the masks' memory."""
    bits = torch.from_numpy(masks).view(torch.bool)
    instances = Instances(masks.shape[1:])
    instances.gt_boxes = Boxes(masks_to_boxes(bits))
    instances.gt_classes = torch.from_numpy(classes)
    instances.gt_masks = BitMasks(bits)
    instances.gt_ids = torch.from_numpy(ids)
    return instances
