"""What COCO and YouTube-VIS json files have in common: reading them, their categories, and checking that their pictures are there."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from solotrack.errors import SoloTrackError

__all__ = [
    "DatasetError",
    "check_pictures_exist",
    "class_ids",
    "optional_list",
    "read_annotation_file",
    "read_categories",
    "require_keys",
    "sorted_categories",
]


class DatasetError(SoloTrackError, ValueError):
    """A data set that cannot be used as it is; the message names the file and the remedy."""


def read_annotation_file(json_file: str | os.PathLike, required: Sequence[str] = ()) -> dict[str, Any]:
    """Read a COCO or YouTube-VIS json file.

    Args:
        json_file: path.
        required: keys that the file must have, each a list.

    Raises:
        FileNotFoundError: no such file.
        DatasetError: not json (with the byte at which it breaks), or a required list is missing.
    """
    try:
        with open(json_file, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no annotation file {json_file}; check the path (relative to {os.getcwd()}).") from None
    try:
        data = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise DatasetError(
            f"{json_file} is not valid json: it breaks at byte {_broken_byte(content, error)} of {len(content)} ({error.msg}). "
            "A file that breaks at its end was cut short; copy or write it again."
        ) from error
    if not isinstance(data, Mapping):
        raise DatasetError(f"{json_file} holds {_kind(data)}, not an object; is it a COCO or YouTube-VIS annotation file?")
    keys = sorted(data)
    for key in required:
        if key not in keys or not isinstance(data[key], list):
            hint = ""
            if key == "images" and "videos" in keys:
                hint = " It lists videos: name it where YouTube-VIS files go (DATASETS.CUSTOM.VIDEOS)."
            elif key == "videos" and "images" in keys:
                hint = " It lists images: name it where COCO files go (DATASETS.CUSTOM.IMAGES)."
            raise DatasetError(f"{json_file} has no list {key!r} (it has: {', '.join(keys) or 'no keys'}).{hint}")
    return data


def _broken_byte(content: bytes, error: orjson.JSONDecodeError) -> int:
    """Offset of a fault in bytes, which a user can compare with the file's size; orjson counts characters."""
    try:
        return len(content.decode()[: error.pos].encode())
    except UnicodeDecodeError as fault:
        return fault.start


def read_categories(json_file: str | os.PathLike) -> list[dict[str, Any]]:
    """The file's categories [{"id", "name", ...}] sorted by id; [] for a file without the key (unlabelled videos).

    The last few files' categories are remembered, since a COCO json takes seconds to read.

    Raises:
        FileNotFoundError, DatasetError: as ``read_annotation_file``; or an id or a name occurs twice.
    """
    path = os.path.abspath(json_file)
    stat = os.stat(path) if os.path.isfile(path) else None
    return [dict(category) for category in _read_categories(path, stat and (stat.st_mtime_ns, stat.st_size))]


@lru_cache(maxsize=32)
def _read_categories(json_file: str, version: tuple[int, int] | None) -> tuple[dict[str, Any], ...]:
    del version  # part of the key, so that a file that has changed is read again
    return tuple(sorted_categories(read_annotation_file(json_file), json_file))


def sorted_categories(data: Mapping[str, Any], json_file: str | os.PathLike) -> list[dict[str, Any]]:
    """Categories of a file that has been read, sorted by id and checked."""
    categories = optional_list(data, "categories", json_file)
    for number, category in enumerate(categories):
        require_keys(category, {"id": int, "name": str}, f"{json_file}: category number {number} (from 0)")
    categories = sorted(categories, key=lambda category: category["id"])
    for key in ("id", "name"):
        values = [category[key] for category in categories]
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise DatasetError(f"{json_file} has more than one category with the {key} {', '.join(twice)}; give each its own.")
    return categories


def optional_list(data: Mapping[str, Any], key: str, json_file: str | os.PathLike) -> list[Any]:
    """``data[key]``, [] where there is no such key; raise DatasetError where it is no list."""
    value = data.get(key, [])
    if not isinstance(value, list):
        raise DatasetError(f"{json_file} has {_kind(value)} for {key!r}; it must be a list. Leave the key out where there are none.")
    return value


def require_keys(item: Any, keys: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """Raise DatasetError, with ``where`` in front, when ``item`` is no object, or one of the keys is missing or of another type."""
    if not isinstance(item, Mapping):
        raise DatasetError(f"{where} is {_kind(item)}; it must be an object with {', '.join(map(repr, keys))}.")
    missing = [key for key in keys if key not in item]
    if missing:
        raise DatasetError(f"{where} has no {' and no '.join(repr(key) for key in missing)}.")
    for key, types in keys.items():
        if not isinstance(item[key], types) or isinstance(item[key], bool):
            wanted = " or ".join(_NAMES[kind] for kind in (types if isinstance(types, tuple) else (types,)))
            raise DatasetError(f"{where} has {_kind(item[key])} for {key!r}; it must be {wanted}.")


_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a fraction", bool: "true or false"}


def _kind(value: Any) -> str:
    """What a value of a json is, with the value itself where that is short."""
    return "null" if value is None else _NAMES[type(value)] + ("" if isinstance(value, (dict, list)) else f" ({reprlib.repr(value)})")


def class_ids(categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Category id of the file -> contiguous class 0 .. C - 1, in the order of the ids, as Detectron2 numbers them."""
    return {category["id"]: index for index, category in enumerate(categories)}


def check_pictures_exist(paths: Sequence[str], folder: str | os.PathLike, json_file: str | os.PathLike, ends: int = 3) -> None:
    """Look for the first and the last few pictures that a json lists, so that a wrong folder shows before the training starts.

    Raises:
        FileNotFoundError: the folder or one of these files is missing.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"There is no folder {folder}, which holds the pictures of {json_file}; unpack them there or correct the path."
        )
    for path in {*paths[:ends], *paths[-ends:]} if ends else ():
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{path}, listed in {json_file}, does not exist. The json's file names must be relative to {folder}: "
                "correct that folder, or copy the missing files."
            )
