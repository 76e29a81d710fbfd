"""A part of YouTube-VIS's labelled videos held out, for the labels of its validation set are not public (METHOD 8.2)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from solotrack.files import atomic_write

from .annotation_file import DatasetError, read_annotation_file, sorted_categories
from .categories import subset_category_ids

__all__ = ["split_ytvis"]


def split_ytvis(
    json_file: str | os.PathLike,
    frame_root: str | os.PathLike,
    output: str | os.PathLike,
    root: str | os.PathLike,
    held_out: int = 300,
    subset: str = "name20",
    seed: int = 0,
) -> tuple[int, int]:
    """Write two YouTube-VIS files: ``output``/learn.json and, last, ``output``/held_out.json.

    Args:
        json_file: labelled videos.
        frame_root: folder that its frame names are relative to.
        output: folder.
        root: folder that the frame names of the new files are relative to.
        held_out: videos to hold out, of those that show an object of the subset.
        subset: categories that will be scored, see :func:`subset_category_ids`.
        seed: of the choice, which otherwise depends on the videos' ids alone.

    Returns:
        The number of videos to learn from, and of those held out.

    Raises:
        FileNotFoundError, DatasetError: the json cannot be read, or has no more than ``held_out`` such videos.
    """
    data = read_annotation_file(json_file, required=("videos", "annotations", "categories"))
    wanted = set(subset_category_ids(sorted_categories(data, json_file), subset))
    candidates = sorted({annotation["video_id"] for annotation in data["annotations"] if annotation["category_id"] in wanted})
    if not 0 < held_out < len(candidates):
        raise DatasetError(
            f"{json_file} has {len(candidates)} videos with objects of {subset}; "
            f"from 1 to {len(candidates) - 1} can be held out, not {held_out}."
        )
    chosen = {candidates[index] for index in np.random.default_rng(seed).permutation(len(candidates))[:held_out]}
    prefix = os.path.relpath(frame_root, root)
    parts = {"learn.json": _part(data, prefix, chosen, False), "held_out.json": _part(data, prefix, chosen, True)}
    for name, part in parts.items():
        with atomic_write(Path(output, name)) as file:
            json.dump(part, file)
    return len(parts["learn.json"]["videos"]), held_out


def _part(data: dict[str, Any], prefix: str, chosen: set[int], inside: bool) -> dict[str, Any]:
    """The videos that are among the chosen, or are not, with their annotations."""
    videos = [
        {**video, "file_names": [f"{prefix}/{name}" for name in video["file_names"]]}
        for video in data["videos"]
        if (video["id"] in chosen) == inside
    ]
    annotations = [annotation for annotation in data["annotations"] if (annotation["video_id"] in chosen) == inside]
    return {**data, "videos": videos, "annotations": annotations}
