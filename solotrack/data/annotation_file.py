"""What COCO and YouTube-VIS json files have in common: reading them, their categories, and checking that their pictures are there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

__all__ = [
    "DatasetError",
    "check_pictures_exist",
    "class_ids",
    "read_annotation_file",
    "read_categories",
    "require_keys",
    "sorted_categories",
]


class DatasetError(ValueError):
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
    keys = sorted(data) if isinstance(data, Mapping) else []
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
    categories = data.get("categories", [])
    for number, category in enumerate(categories):
        require_keys(category, ("id", "name"), f"{json_file}: category number {number} (from 0)")
    categories = sorted(categories, key=lambda category: category["id"])
    for key in ("id", "name"):
        values = [category[key] for category in categories]
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise DatasetError(f"{json_file} has more than one category with the {key} {', '.join(twice)}; give each its own.")
    return categories


def require_keys(item: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Raise DatasetError, with ``where`` in front, when one of the keys is missing."""
    missing = [key for key in keys if key not in item]
    if missing:
        raise DatasetError(f"{where} has no {' and no '.join(repr(key) for key in missing)}.")


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
