"""Mosaics of labelled images: more and smaller objects in a picture than the images themselves have.

SOLO ties a mask to a grid cell, so a picture trains as many cells as it has objects, and objects that fill half of a still image are no
training for those that cover a hundredth of a video's frame.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from solotrack.files import atomic_write
from solotrack.ops.rle import encode_masks

from .annotation_file import DatasetError, read_categories
from .coco import load_coco_instances
from .mappers import ImageMapper

__all__ = ["cover_crop", "draw_mosaic", "write_mosaics"]

_JPEG_QUALITY = 92


def cover_crop(image: np.ndarray, masks: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Resize a picture so that it just covers a tile, and cut the tile out at a random place.

    Args:
        image: (H, W, 3) uint8.
        masks: (n, H, W) uint8, 0 or 1.
        size: (h, w) of the tile, pixels.
        rng: draws the place.

    Returns:
        The tile (h, w, 3) uint8 and its masks (n, h, w) uint8.
    """
    height, width = size
    scale = max(height / image.shape[0], width / image.shape[1])
    full = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))  # (W, H), as OpenCV has it
    x, y = rng.integers(0, full[0] - width + 1), rng.integers(0, full[1] - height + 1)
    tile = np.s_[y : y + height, x : x + width]
    # means of areas where the picture shrinks: a mask's pixel is set when half of what it stands for is
    resized = cv2.resize(image, full, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    small = np.zeros((len(masks), height, width), np.uint8)
    for target, mask in zip(small, masks, strict=True):
        target[:] = cv2.resize(255 * mask, full, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)[tile] >= 128
    return resized[tile], small


def draw_mosaic(
    pictures: Sequence[tuple[np.ndarray, np.ndarray]], tiles: int, size: tuple[int, int], rng: np.random.Generator, min_visible: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mosaic of tiles x tiles pictures.

    Args:
        pictures: tiles^2 images (H, W, 3) uint8 with their masks (n, H, W) uint8; any sizes.
        tiles: in a row.
        size: (H, W) of the mosaic.
        rng: draws what is cut off.
        min_visible: share of an object, 0 to 1, that must be left of it in its tile; with less it has no mask.

    Returns:
        The mosaic (H, W, 3) uint8, the masks left (m, H, W) bool, and the indices (m,) of these among all the pictures' masks.
    """
    mosaic = np.zeros((*size, 3), np.uint8)
    edges = [np.linspace(0, side, tiles + 1).round().astype(int) for side in size]
    masks, kept, first = [], [], 0
    for place, (image, objects) in enumerate(pictures):
        row, column = divmod(place, tiles)
        rows, columns = slice(*edges[0][row : row + 2]), slice(*edges[1][column : column + 2])
        tile = (rows.stop - rows.start, columns.stop - columns.start)
        mosaic[rows, columns], small = cover_crop(image, objects, tile, rng)
        scale = max(tile[0] / image.shape[0], tile[1] / image.shape[1])
        for index, (mask, whole) in enumerate(zip(small, objects, strict=True)):
            pixels = np.count_nonzero(mask)
            if pixels and pixels >= min_visible * scale**2 * np.count_nonzero(whole):
                canvas = np.zeros(size, bool)
                canvas[rows, columns] = mask
                masks.append(canvas)
                kept.append(first + index)
        first += len(objects)
    return mosaic, np.array(masks, bool).reshape(-1, *size), np.array(kept, np.int64)


def write_mosaics(
    json_file: str,
    image_root: str,
    output: str | Path,
    count: int,
    seed: int,
    size: tuple[int, int] = (384, 512),
    tiles: Sequence[int] = (1, 2, 3),
    min_visible: float = 0.3,
) -> dict[str, int]:
    """Write mosaics of a labelled set as a labelled set: ``train.json`` (COCO) and ``images/``.

    Every picture of the set is used before one is used again. Crowds are left out.

    Args:
        json_file, image_root: the set, see :func:`load_coco_instances`.
        output: folder to make.
        count: mosaics.
        seed: of the order and the places.
        size: (height, width), pixels.
        tiles: numbers of tiles in a row, taken in turn.
        min_visible: see :func:`draw_mosaic`.

    Returns:
        {"images": count, "objects": number of masks}.

    Raises:
        FileNotFoundError, DatasetError: as :func:`load_coco_instances`; or there is no image, an image is not as large as the json says or
            has a broken mask, ``count`` is below 1, or a side of a tile below a pixel.
        FrameError: an image cannot be read.
    """
    if count < 1 or min(size) < max(tiles):
        raise DatasetError(f"mosaics: count must be 1 or more, height and width {max(tiles)} or more; got {count}, {size[0]} and {size[1]}")
    records = load_coco_instances(json_file, image_root)
    if not records:
        raise DatasetError(f"{json_file} has no images to make mosaics of.")
    categories = read_categories(json_file)
    read = ImageMapper([], "RGB")
    output, rng = Path(output), np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    order: list[int] = []
    for number in range(count):
        across = tiles[number % len(tiles)]
        while len(order) < across**2:
            order += rng.permutation(len(records)).tolist()
        chosen, order = [read(records[i]) for i in order[: across**2]], order[across**2 :]
        classes = [label for sample in chosen for label in sample["instances"].gt_classes.tolist()]
        picture, masks, kept = draw_mosaic([_arrays(sample) for sample in chosen], across, size, rng, min_visible)
        name = f"images/{number:06d}.jpg"
        with atomic_write(output / name, "wb") as file:
            file.write(cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())
        images.append({"id": number + 1, "file_name": name, "height": size[0], "width": size[1]})
        for index, mask, rle in zip(kept.tolist(), masks, encode_masks(masks), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": categories[classes[index]]["id"],
                    "iscrowd": 0,
                    "segmentation": rle,
                    "area": int(np.count_nonzero(mask)),
                    "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
                }
            )
    with atomic_write(output / "train.json") as file:
        json.dump({"images": images, "categories": categories, "annotations": annotations}, file)
    return {"images": len(images), "objects": len(annotations)}


def _arrays(sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The image (H, W, 3) and the masks (n, H, W) uint8 of a mapped record."""
    return sample["image"].permute(1, 2, 0).numpy(), sample["instances"].gt_masks.tensor.byte().numpy()
