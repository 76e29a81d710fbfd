"""Labelled images: COCO instance json -> Detectron2's standard dicts."""

from __future__ import annotations

import logging
import math
import os
import reprlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from solotrack.ops.rle import compress_rle, measure_counts

from .annotation_file import (
    DatasetError,
    check_pictures_exist,
    class_ids,
    optional_list,
    read_annotation_file,
    require_keys,
    sorted_categories,
)

__all__ = ["check_runs", "clean_segmentation", "load_coco_instances"]

logger = logging.getLogger(__name__)

_ID = (int, str)  # of images and annotations


def load_coco_instances(json_file: str, image_root: str, category_map: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """Read a COCO json with instance masks.

    As Detectron2's ``load_coco_json``, and besides: keeps the annotations' ids, takes category subsets, checks sizes and files, accepts
    a json without annotations, and its errors name the file.

    Args:
        json_file: COCO json; ``segmentation`` is polygons, compressed or uncompressed RLE. Without ``annotations`` no image has any.
        image_root: folder that the file names are relative to.
        category_map: category id of the json -> class. Annotations of the json's other categories are dropped, so a map of some categories
            makes a subset. None: all categories, numbered 0 .. C - 1 in the order of their ids.

    Returns:
        Dicts in the order of the image ids: file_name, image_id, height, width, annotations [{id, iscrowd, bbox (x, y, w, h), bbox_mode,
        category_id (the class), segmentation}] in the file's order. Annotations whose polygons have fewer than three points are left out.

    Raises:
        FileNotFoundError: the json, the folder, or one of the first or last images is missing.
        DatasetError: the json is broken, names a category, image or size that does not fit, or has boxes only.
    """
    data = read_annotation_file(json_file, required=("images",))
    classes = class_ids(sorted_categories(data, json_file))
    if category_map is not None:
        unknown = sorted(set(category_map) - set(classes))
        if unknown:
            raise DatasetError(f"{json_file} has no categories with the ids {unknown}, which its subset needs; it has {sorted(classes)}.")
        classes = {dataset_id: category_map.get(dataset_id) for dataset_id in classes}  # None: to be dropped

    for number, image in enumerate(data["images"]):
        where = f"{json_file}: image number {number} (from 0)"
        require_keys(image, {"id": _ID, "file_name": str, "height": int, "width": int}, where)
        if min(image["height"], image["width"]) < 1:
            raise DatasetError(f"{where} is {image['width']} x {image['height']} pixels; width and height must be at least 1.")
    if len({type(image["id"]) for image in data["images"]}) > 1:
        raise DatasetError(f"{json_file} has images whose ids are numbers and others whose ids are text; make them all the same.")
    images = sorted(data["images"], key=lambda image: image["id"])
    by_image = _group_by_image(optional_list(data, "annotations", json_file), images, json_file)
    records, unmeasured, pointless, dropped = [], [], 0, 0
    for image in images:
        record = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
        for annotation in by_image.get(image["id"], ()):
            where = f"{json_file}: annotation {annotation['id']} of image {image['id']} ({image['file_name']})"
            if annotation["category_id"] not in classes:
                raise DatasetError(
                    f"{where} has the category_id {annotation['category_id']}, which is not among the file's categories "
                    f"{sorted(classes)}; add the category or correct the annotation."
                )
            label = classes[annotation["category_id"]]
            if label is None:
                dropped += 1
                continue
            segmentation = clean_segmentation(annotation.get("segmentation"), image["height"], image["width"], where)
            if segmentation is None:
                pointless += 1
                continue
            read = {
                "id": annotation["id"],
                "iscrowd": int(bool(annotation.get("iscrowd", 0) or annotation.get("ignore", 0))),
                "bbox": _given_box(annotation, where),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": label,
                "segmentation": segmentation,
            }
            record["annotations"].append(read)
            if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
                unmeasured.append((read, where))
        records.append(record)

    check_runs(unmeasured)
    for record in records:
        for annotation in record["annotations"]:
            annotation["bbox"] = annotation["bbox"] or _bounding_box(annotation["segmentation"])
    kept = sum(len(record["annotations"]) for record in records)
    if pointless and not kept:
        raise DatasetError(f"None of the {pointless} annotations of {json_file} has a mask; SOLO learns from masks, boxes are not enough.")
    if pointless:
        logger.warning(f"{json_file}: left out {pointless} of {kept + pointless} annotations, which have no valid mask.")
    check_pictures_exist([record["file_name"] for record in records], image_root, json_file)
    logger.info(f"{json_file}: {len(records)} images, {kept} instances" + (f", {dropped} of other categories left out" if dropped else ""))
    return records


def _group_by_image(
    annotations: Sequence[dict[str, Any]], images: Sequence[dict[str, Any]], json_file: str
) -> dict[int, list[dict[str, Any]]]:
    """Image id -> its annotations in the file's order; ids are checked to be unique."""
    known = {image["id"] for image in images}
    if len(known) < len(images):
        raise DatasetError(f"{json_file} has {len(images)} images but only {len(known)} different image ids; give each its own.")
    kinds = tuple({type(image["id"]) for image in images}) or _ID
    groups, ids, strays = defaultdict(list), set(), 0
    for number, annotation in enumerate(annotations):
        require_keys(annotation, {"id": _ID, "image_id": kinds, "category_id": int}, f"{json_file}: annotation number {number} (from 0)")
        if annotation["id"] in ids:
            raise DatasetError(f"{json_file} has more than one annotation with the id {annotation['id']}; give each its own.")
        ids.add(annotation["id"])
        if annotation["image_id"] in known:
            groups[annotation["image_id"]].append(annotation)
        else:
            strays += 1
    if strays:
        logger.warning(f"{json_file}: {strays} of {len(annotations)} annotations belong to no image of the file and were left out.")
    return groups


def clean_segmentation(segmentation: Any, height: int, width: int, where: str) -> list | dict | None:
    """Polygons with at least three points, or compressed RLE; None where there is no mask."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        require_keys(segmentation, {"size": list, "counts": (str, list)}, f"{where}: its mask, an RLE,")
        if segmentation["size"] != [height, width]:
            raise DatasetError(
                f"{where} has a mask of {segmentation['size']} pixels but the image is [{height}, {width}] (height, width); "
                "make the mask at the image's own size."
            )
        if isinstance(segmentation["counts"], str):
            return segmentation
        try:
            return compress_rle(segmentation, height, width)
        except ValueError as error:
            raise DatasetError(f"{where} has a broken mask: {error}.") from error
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) and _all_finite(polygon) for polygon in segmentation):
        raise DatasetError(f"{where} has a mask that is neither an RLE nor a list of polygons [[x0, y0, x1, y1, ...], ...] of numbers.")
    polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return polygons or None


def _all_finite(numbers: list[Any]) -> bool:
    try:
        return math.isfinite(sum(numbers))  # many times as quick as a look at each
    except (TypeError, OverflowError):
        return False


def _given_box(annotation: Mapping[str, Any], where: str) -> list[float] | None:
    """The annotation's (x, y, w, h), None where it has none."""
    box = annotation.get("bbox") or None
    if box is not None and not (isinstance(box, list) and len(box) == 4 and _all_finite(box)):
        raise DatasetError(f"{where} has the bbox {reprlib.repr(box)}; it must be four numbers [x, y, width, height], or be left out.")
    return box


def check_runs(annotations: Sequence[tuple[Mapping[str, Any], str]]) -> None:
    """Check that the compressed RLEs of (annotation, what messages call it) cover their images; all at once, which is quick."""
    pixels = measure_counts([annotation["segmentation"]["counts"] for annotation, _ in annotations])[1]
    for (annotation, where), covered in zip(annotations, pixels.tolist(), strict=True):
        height, width = annotation["segmentation"]["size"]
        if covered != height * width:
            found = f"its counts cover {covered} pixels, not {height} x {width}" if covered >= 0 else "its counts are no run-length string"
            raise DatasetError(f"{where} has a broken mask: {found}.")


def _bounding_box(segmentation: list | dict) -> list[float]:
    """(x, y, w, h) of a segmentation whose annotation gives no box."""
    if isinstance(segmentation, dict):
        return mask_util.toBbox(segmentation).tolist()
    points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation])
    low = points.min(axis=0)
    return [*low.tolist(), *(points.max(axis=0) - low).tolist()]
