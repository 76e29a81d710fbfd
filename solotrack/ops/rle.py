"""Run-length encoded masks (COCO's RLE) over pycocotools, safe for strings that come from a file.

An RLE is ``{"size": [height, width], "counts": ...}``: run lengths in column-major order that begin with background, as a list
(uncompressed) or as COCO's compressed string. pycocotools trusts what it is given: a string cut in the middle of a number is read past its
end, and runs that do not add up to height x width keep its IoU and merge loops from ever ending. Everything here checks the runs first.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

__all__ = ["compress_rle", "decode_rle", "encode_masks", "has_negative_runs", "measure_counts", "rle_areas", "rle_to_json"]

_AREA_BATCH = 250  # masks a call: pycocotools' area() counts them in uint8 and fails beyond 255
_ANY_SIZE = (1, 1)  # areas depend on the runs alone
_HEAD = 8  # characters that always hold the first run: 5 bits each, and a run is below 2**32


def encode_masks(masks: torch.Tensor | np.ndarray) -> list[dict[str, Any]]:
    """Encode binary masks.

    Args:
        masks: (n, H, W) bool or 0/1 integers, a tensor on any device or an array.

    Returns:
        n compressed RLEs, ``counts`` as str, ready for json.

    Raises:
        ValueError: the input is not of shape (n, H, W).
    """
    masks = torch.as_tensor(masks)
    if masks.ndim != 3:
        raise ValueError(f"masks must have shape (n, H, W), not {tuple(masks.shape)}")
    if len(masks) == 0:
        return []
    # (n, W, H) in memory is what pycocotools calls a Fortran-ordered (H, W, n)
    columns = masks.ne(0).transpose(1, 2).to(torch.uint8).contiguous().cpu().numpy()
    return [rle_to_json(rle) for rle in coco_mask.encode(columns.transpose(2, 1, 0))]


def rle_to_json(rle: Mapping[str, Any]) -> dict[str, Any]:
    """The same RLE in types that json can write: ``size`` as two ints, ``counts`` as str (compressed) or list of ints."""
    counts = rle["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    elif not isinstance(counts, str):
        counts = [int(c) for c in counts]
    return {"size": [int(side) for side in rle["size"]], "counts": counts}


def decode_rle(segmentation: Mapping[str, Any] | Sequence, height: int, width: int) -> np.ndarray:
    """Decode a compressed RLE, an uncompressed RLE or a list of polygons.

    Args:
        segmentation: an RLE, or polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixels, whose union is meant.
        height, width: of the image, pixels.

    Returns:
        (H, W) uint8, 0 or 1.

    Raises:
        ValueError: the segmentation is malformed or of another size.
    """
    return np.ascontiguousarray(coco_mask.decode(compress_rle(segmentation, height, width)))


def compress_rle(segmentation: Mapping[str, Any] | Sequence, height: int, width: int) -> dict[str, Any]:
    """Turn a segmentation in any of COCO's three forms into a compressed RLE that is safe to give to pycocotools.

    Args, Raises: as :func:`decode_rle`.
    """
    if isinstance(segmentation, (list, tuple)):
        return _rasterize(segmentation, height, width)
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError("a segmentation must be a list of polygons or an RLE with 'size' and 'counts'")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, (list, tuple, np.ndarray)) or list(size) != [height, width]:
        raise ValueError(f"RLE of size {size} in an image of [height, width] = {[height, width]}")
    if isinstance(counts, (str, bytes)):
        total = int(measure_counts([counts])[1][0])
        if total != height * width:
            raise ValueError(_wrong_total(total, height, width))
        if has_negative_runs(counts):
            raise ValueError("RLE counts hold a negative run")
        return {"size": [height, width], "counts": counts}
    try:
        runs = array("I", counts)  # refuses floats and negative numbers
    except (TypeError, OverflowError) as error:
        raise ValueError(f"RLE counts must be a string or non-negative integers: {error}") from None
    total = int(np.frombuffer(runs, np.uint32).sum(dtype=np.int64))
    if total != height * width:
        raise ValueError(_wrong_total(total, height, width))
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def rle_areas(rles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Foreground areas of compressed RLEs that are known to be sound: (n,) int64, pixels."""
    batches = [coco_mask.area(rles[i : i + _AREA_BATCH]) for i in range(0, len(rles), _AREA_BATCH)]
    return np.concatenate(batches).astype(np.int64) if batches else np.zeros(0, np.int64)


def measure_counts(counts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Foreground area and number of pixels of compressed RLE strings, without decoding them to pixels.

    Negative runs that others make up for go unnoticed: see :func:`has_negative_runs`, which takes longer.

    Args:
        counts: n strings.

    Returns:
        areas: (n,) int64, foreground pixels.
        pixels: (n,) int64, all pixels the runs cover, to be compared with height x width; -1 for a string that is no RLE.
    """
    areas = np.zeros(len(counts), np.int64)
    pixels = np.full(len(counts), -1, np.int64)
    texts = [c.decode("latin-1") if isinstance(c, bytes) else c for c in counts]
    # A number goes on while its characters have bit 32; the last of a string must not, or the C code would read on.
    # A zero byte ends the string early for the C code, and what is not ASCII changes its length.
    keep = [i for i, t in enumerate(texts) if t and t.isascii() and not (ord(t[-1]) - 48) & 32 and "\0" not in t]
    for begin in range(0, len(keep), _AREA_BATCH):
        rows = keep[begin : begin + _AREA_BATCH]
        batch = [texts[i] for i in rows]
        first, length = _first_runs(batch)
        # area() adds the runs at odd places. From the fourth run on, a run is stored as its difference to the one two places before,
        # so two zeros put in the place of the first run move every other run by one place: area() then adds the background.
        shifted = ["00" + text[n:] for text, n in zip(batch, length, strict=True)]
        foreground = rle_areas([{"size": _ANY_SIZE, "counts": text} for text in batch])
        background = rle_areas([{"size": _ANY_SIZE, "counts": text} for text in shifted])
        areas[rows] = foreground
        pixels[rows] = np.where(first >= 0, foreground + background + first, -1)
    return areas, pixels


def has_negative_runs(counts: str | bytes) -> bool:
    """Whether a string of the right number of pixels has a run below zero, with which pycocotools' loops do not end."""
    text = counts.encode() if isinstance(counts, str) else counts
    # pycocotools takes a negative run for one near 2**32 and would write that as another string
    if coco_mask.merge([{"size": _ANY_SIZE, "counts": text}])["counts"] == text:
        return False
    return min(_runs(text)) < 0


def _runs(text: bytes) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = character - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (code & 16 and 1) << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return runs


def _first_runs(texts: list[str]) -> tuple[np.ndarray, list[int]]:
    """The first run of each string (n,), negative where it is malformed, and the number of characters it takes."""
    code = np.array([text[:_HEAD] for text in texts], f"S{_HEAD}").view(np.uint8).reshape(-1, _HEAD).astype(np.int64) - 48
    goes_on = (code & 32) != 0  # False for the padding too
    length = goes_on.argmin(axis=1) + 1
    place = np.arange(_HEAD)
    bits = np.where(place < length[:, None], code & 31, 0)
    first = (bits << (5 * place)).sum(axis=1)
    negative = bits[np.arange(len(texts)), length - 1] & 16 != 0
    first[negative | goes_on.all(axis=1)] = -1
    return first, length.tolist()


def _rasterize(polygons: Sequence, height: int, width: int) -> dict[str, Any]:
    try:
        flat = [np.asarray(polygon, np.float64) for polygon in polygons]
    except (TypeError, ValueError):
        raise ValueError("polygons must be lists of numbers [x0, y0, x1, y1, ...]") from None
    if not flat or any(p.ndim != 1 or len(p) < 6 or len(p) % 2 or not np.isfinite(p).all() for p in flat):
        raise ValueError("each polygon needs three or more points as finite numbers [x0, y0, x1, y1, ...]")
    return coco_mask.merge(coco_mask.frPyObjects([p.tolist() for p in flat], height, width))


def _wrong_total(total: int, height: int, width: int) -> str:
    if total < 0:
        return "RLE counts are no run-length string"
    return f"RLE counts cover {total} pixels, not height x width = {height * width}"
