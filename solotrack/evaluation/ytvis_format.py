"""YouTube-VIS files: reading them, and finding every fault in them before anything is scored (METHOD 5.6, 8.1, 9.1).

Ground truth is ``{"videos": [...], "categories": [...], "annotations": [...]}``; predictions are a list of
``{"video_id": int, "category_id": int, "score": float, "segmentations": [RLE or None] * length}``, an RLE being
``{"size": [height, width], "counts": str}`` at the video's own size.
"""

from __future__ import annotations

import gc
import json
import math
import reprlib
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from solotrack.errors import SoloTrackError
from solotrack.ops.rle import compress_rle, measure_counts, rle_areas

__all__ = ["GroundTruth", "Track", "Video", "YTVISFormatError", "load_json", "read_ground_truth", "read_predictions"]

_SHOWN = 50  # faults listed before the rest is only counted
_NO_AREAS = np.zeros(0, np.int64)


class YTVISFormatError(SoloTrackError, ValueError):
    """A file cannot be read or scored; the message lists its faults."""


class _Faults:
    """Faults of one file: the first ones as text, the rest as a number."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.total = 0

    def add(self, text: str) -> None:
        self.total += 1
        if self.total <= _SHOWN:
            self.shown.append(text)

    def report(self, heading: str) -> str:
        lines = [f"{heading} ({self.total}):", *(f"  {text}" for text in self.shown)]
        if self.total > _SHOWN:
            lines.append(f"  ... and {self.total - _SHOWN} more")
        return "\n".join(lines)

    def raise_if_any(self, heading: str) -> None:
        if self.total:
            raise YTVISFormatError(self.report(heading))


@dataclass(frozen=True, slots=True)
class Video:
    """Size in pixels and length in frames of a video."""

    height: int
    width: int
    length: int


@dataclass(slots=True)
class Track:
    """One object through a video: a ground truth or a prediction."""

    id: int  # of the annotation; a prediction's place in the file
    name: str  # what messages call it
    video_id: int
    category_id: int
    score: float  # 1 for ground truth
    crowd: bool
    mean_area: float  # pixels, over the frames where the area is not zero
    rles: Sequence[Mapping[str, Any] | None]  # compressed, one a frame
    areas: np.ndarray  # (T,) int64, pixels of each frame, 0 where absent


@dataclass(slots=True)
class GroundTruth:
    """A checked annotation file."""

    videos: dict[int, Video]
    categories: dict[int, str]  # id -> name
    tracks: list[Track]


def load_json(path: str | Path) -> Any:
    """Read a json file, or the ``results.json`` at the top of a ``.zip``.

    Raises:
        YTVISFormatError: the file is missing, is no json (the message names the byte where reading failed) or the archive has no
            ``results.json``.
    """
    path = Path(path)
    try:
        data = _read_zip(path) if path.suffix.lower() == ".zip" else path.read_bytes()
    except OSError as error:
        raise YTVISFormatError(f"{path}: cannot be read: {error.strerror or error}") from None
    with _no_garbage_collection():
        try:
            return orjson.loads(data)
        except ValueError:
            pass  # the standard reader says where, and lets NaN through to be reported as the score it is
        try:
            text = data.decode("utf-8")
            return json.loads(text)
        except UnicodeDecodeError as error:
            raise YTVISFormatError(f"{path}: not UTF-8 text at byte {error.start} of {len(data)}") from None
        except json.JSONDecodeError as error:
            byte = len(text[: error.pos].encode())
            raise YTVISFormatError(
                f"{path}: not valid json at byte {byte} of {len(data)}: {error.msg}. If the file was cut short, write it again"
            ) from None


def read_ground_truth(data: Any, source: str = "ground truth", require_annotations: bool = True) -> GroundTruth:
    """Check an annotation file's content and bring its tracks into one form.

    Masks may be uncompressed RLEs, compressed RLEs or lists of polygons. ``mean_area`` comes from the file's ``areas``.

    Args:
        data: the parsed json.
        source: what to call it in messages, its path for instance.
        require_annotations: False to accept a file of videos and categories only.

    Raises:
        YTVISFormatError: lists every fault.
    """
    if not isinstance(data, Mapping):
        raise YTVISFormatError(f"{source}: must be an object with 'videos', 'categories' and 'annotations', not {_kind(data)}")
    absent = [key for key in ("videos", "categories") if not isinstance(data.get(key), list)]
    if absent:
        raise YTVISFormatError(
            f"{source}: lacks the list{'s' if len(absent) > 1 else ''} {_quoted(absent)}; is it a YouTube-VIS annotation file?"
        )
    annotations = data.get("annotations")
    if require_annotations and not isinstance(annotations, list):
        raise YTVISFormatError(
            f"{source}: has no annotations, so nothing can be scored against it. The public validation and test files are so: "
            "send the results to the data set's server"
        )
    faults = _Faults()
    videos = _read_videos(data["videos"], faults)
    categories = _read_categories(data["categories"], faults)
    tracks: dict[int, Track] = {}
    for place, annotation in enumerate(annotations or []):
        where = f"annotations[{place}]"
        track = _read_annotation(annotation, where, videos, categories, faults)
        if track is not None and _new_id(track.id, tracks, where, faults):
            tracks[track.id] = track
    faults.raise_if_any(f"{source}: faults in the ground truth")
    return GroundTruth(videos, categories, list(tracks.values()))


def read_predictions(
    data: Any, ground_truth: GroundTruth, source: str = "predictions", strict: bool = False
) -> tuple[list[Track], str | None]:
    """Check the content of a results file against the videos and categories it is meant for.

    Args:
        data: the parsed json; an empty list is fine.
        ground_truth: whose videos and categories count; it needs no annotations.
        source: what to call the data in messages, its path for instance.
        strict: a number of segmentations other than the video's length is a fault, not only a warning. The official evaluator scores such
            tracks on the frames both lists have; the data set's server may refuse them.

    Returns:
        The tracks in file order, and a warning that lists tracks of wrong length (None without).

    Raises:
        YTVISFormatError: lists every fault.
    """
    if not isinstance(data, list):
        raise YTVISFormatError(f"{source}: must be a list of tracks, not {_kind(data)}")
    faults, lengths = _Faults(), _Faults()
    tracks: list[Track] = []
    for place, prediction in enumerate(data):
        track = _read_prediction(prediction, place, source, ground_truth, faults, faults if strict else lengths)
        if track is not None:
            tracks.append(track)
    _measure(tracks, ground_truth.videos, faults)
    faults.raise_if_any(f"{source}: faults in the predictions")
    return tracks, lengths.report(f"{source}: tracks not as long as their video") if lengths.total else None


def _read_videos(records: list, faults: _Faults) -> dict[int, Video]:
    videos: dict[int, Video] = {}
    for place, record in enumerate(records):
        where = f"videos[{place}]"
        if not _has_keys(record, ("id", "height", "width", "file_names"), where, faults):
            continue
        height, width, names = record["height"], record["width"], record["file_names"]
        if not all(_is_int(value) and value > 0 for value in (height, width)):
            faults.add(f"{where}: height and width must be positive integers, not {_show(height)} and {_show(width)}")
        elif not isinstance(names, list):
            faults.add(f"{where}: file_names must be a list, not {_kind(names)}")
        elif _new_id(record["id"], videos, where, faults):
            videos[record["id"]] = Video(height, width, len(names))
    return videos


def _read_categories(records: list, faults: _Faults) -> dict[int, str]:
    categories: dict[int, str] = {}
    for place, record in enumerate(records):
        where = f"categories[{place}]"
        if _has_keys(record, ("id", "name"), where, faults) and _new_id(record["id"], categories, where, faults):
            categories[record["id"]] = str(record["name"])
    return categories


def _read_annotation(record: Any, where: str, videos: dict[int, Video], categories: dict[int, str], faults: _Faults) -> Track | None:
    if not _has_keys(record, ("id", "video_id", "category_id", "segmentations", "areas"), where, faults):
        return None
    video = _known_video(record, where, videos, categories, faults)
    lists = [key for key in ("segmentations", "areas") if not isinstance(record[key], list)]
    if lists:
        faults.add(f"{where}: {_quoted(lists)} must be a list with one entry a frame")
    elif not all(area is None or _is_finite(area) for area in record["areas"]):
        faults.add(f"{where}: areas must be numbers or null")
    elif video is not None:
        rles = [_read_mask(mask, video, f"{where}: segmentations[{frame}]", faults) for frame, mask in enumerate(record["segmentations"])]
        shown = [area for area in record["areas"] if area]
        mean_area = float(np.mean(shown)) if shown else 0.0
        areas = _by_frame(rles, rle_areas([rle for rle in rles if rle]))
        crowd = bool(record.get("iscrowd", 0))
        return Track(record["id"], where, record["video_id"], record["category_id"], 1.0, crowd, mean_area, rles, areas)
    return None


def _read_mask(mask: Any, video: Video, where: str, faults: _Faults) -> dict[str, Any] | None:
    try:
        return compress_rle(mask, video.height, video.width) if mask else None
    except ValueError as error:
        faults.add(f"{where}: {error}")
        return None


def _read_prediction(record: Any, place: int, source: str, ground_truth: GroundTruth, faults: _Faults, lengths: _Faults) -> Track | None:
    """The track with its areas still to be measured; what is faulty in it is left out, so that the rest is looked at too."""
    where = f"prediction {place}"
    if not _has_keys(record, ("video_id", "category_id", "score", "segmentations"), where, faults):
        return None
    video = _known_video(record, where, ground_truth.videos, ground_truth.categories, faults)
    score, masks = record["score"], record["segmentations"]
    if not _is_finite(score):
        faults.add(f"{where}: score must be a finite number, not {_show(score)}")
        score = 0.0
    if not isinstance(masks, list):
        faults.add(f"{where}: segmentations must be a list with an RLE or null for each frame, not {_kind(masks)}")
        return None
    if video is not None and len(masks) != video.length:
        lengths.add(f"{where}: {len(masks)} segmentations for the {video.length} frames of video {record['video_id']}")
    size = None if video is None else [video.height, video.width]
    faulty = {frame: fault for frame, mask in enumerate(masks) if mask and (fault := _mask_fault(mask, size))}
    for frame, fault in faulty.items():
        faults.add(f"{where}: segmentations[{frame}]: {fault}")
    rles = [None if frame in faulty else mask for frame, mask in enumerate(masks)] if faulty else masks
    if video is None:
        return None
    return Track(place, f"{source}: {where}", record["video_id"], record["category_id"], float(score), False, 0.0, rles, _NO_AREAS)


def _mask_fault(mask: Any, size: list[int] | None) -> str | None:
    """What is wrong with a predicted mask's form; its runs are measured later, many at a time."""
    if type(mask) is not dict or "size" not in mask or "counts" not in mask:  # pycocotools takes nothing else
        return f"must be null or an RLE with 'size' and 'counts', not {_kind(mask)}"
    if not isinstance(mask["counts"], (str, bytes)):
        return "counts must be a compressed RLE string (pycocotools.mask.encode and frPyObjects make one)"
    if size is not None and not _is_size(mask["size"], size):
        return f"size {_show(mask['size'])} is not the video's [height, width] = {size}"
    return None


def _measure(tracks: list[Track], videos: dict[int, Video], faults: _Faults) -> None:
    """Fill in the areas of predicted tracks, and find RLEs whose runs do not cover the frame."""
    areas, pixels = measure_counts([rle["counts"] for track in tracks for rle in track.rles if rle])
    begin = 0
    for track in tracks:
        video = videos[track.video_id]
        end = begin + sum(1 for rle in track.rles if rle)
        if (pixels[begin:end] != video.height * video.width).any():
            for frame, covered in enumerate(_by_frame(track.rles, pixels[begin:end])):
                if track.rles[frame] and covered != video.height * video.width:
                    found = f"cover {covered} pixels, not {video.height} x {video.width}" if covered >= 0 else "are no RLE string"
                    faults.add(f"prediction {track.id}: segmentations[{frame}]: broken RLE: its counts {found}")
        track.areas = _by_frame(track.rles, areas[begin:end])
        shown = track.areas[track.areas > 0]
        track.mean_area = float(shown.mean()) if len(shown) else 0.0
        begin = end


def _by_frame(rles: Sequence, values: np.ndarray) -> np.ndarray:
    """Values of the frames that have a mask -> (T,) values of all frames, 0 elsewhere."""
    full = np.zeros(len(rles), np.int64)
    full[[frame for frame, rle in enumerate(rles) if rle]] = values
    return full


def _has_keys(record: Any, keys: tuple[str, ...], where: str, faults: _Faults) -> bool:
    if not isinstance(record, Mapping):
        faults.add(f"{where}: must be an object with {_quoted(keys)}, not {_kind(record)}")
        return False
    missing = [key for key in keys if key not in record]
    if missing:
        faults.add(f"{where}: lacks {_quoted(missing)}")
    return not missing


def _known_video(record: Mapping, where: str, videos: Mapping, categories: Mapping, faults: _Faults) -> Video | None:
    """The record's video, None where it is unknown; its category is checked too."""
    for key, table, what in (("video_id", videos, "video"), ("category_id", categories, "category")):
        if not _is_int(record[key]):
            faults.add(f"{where}: {key} must be an integer, not {_show(record[key])}")
        elif record[key] not in table:
            faults.add(f"{where}: {key} {record[key]} is no {what} of the annotation file")
    return videos.get(record["video_id"]) if _is_int(record["video_id"]) else None


def _new_id(value: Any, taken: Container, where: str, faults: _Faults) -> bool:
    if not _is_int(value):
        faults.add(f"{where}: id must be an integer, not {_show(value)}")
    elif value in taken:
        faults.add(f"{where}: id {value} is taken already")
    else:
        return True
    return False


def _is_size(value: Any, size: list[int]) -> bool:
    return isinstance(value, (list, tuple)) and list(value) == size and [*map(type, value)] == [int, int]


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        return False


def _show(value: Any) -> str:
    return reprlib.repr(value)  # a wrong value may be of any size


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _read_zip(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            if "results.json" not in archive.namelist():
                names = ", ".join(archive.namelist()[:5]) or "nothing"
                raise YTVISFormatError(f"{path}: needs results.json at its top level; it holds {names}")
            return archive.read("results.json")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted, or packed in a way unknown here
        raise YTVISFormatError(f"{path}: the zip archive cannot be read: {error}") from None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Parsed json has no cycles, and looking for some while it grows costs as much as reading it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
