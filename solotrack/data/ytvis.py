"""Videos: YouTube-VIS json -> video dicts. Labels are never read here: the method's training has none, the evaluator reads them itself,
and baselines that learn from them have a reader of their own (ytvis_labels)."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .annotation_file import DatasetError, check_pictures_exist, read_annotation_file, require_keys

__all__ = ["check_frames_exist", "load_ytvis", "read_videos"]

logger = logging.getLogger(__name__)


def load_ytvis(json_file: str, frame_root: str) -> list[dict[str, Any]]:
    """Read the videos of a YouTube-VIS json (METHOD 8.1); ``categories`` and ``annotations`` are not needed and not looked at.

    Args:
        json_file: YouTube-VIS json.
        frame_root: folder that the frames' names are relative to.

    Returns:
        Dicts in the file's order: video_id, file_names (absolute paths), height, width, length.

    Raises:
        FileNotFoundError: the json, the folder, or one of the first or last frames of a video is missing.
        DatasetError: the json is broken, or a video has no frames, a wrong length, an id that occurs twice or a value of a wrong type.
    """
    videos = read_videos(read_annotation_file(json_file, required=("videos",)), json_file, frame_root)
    check_frames_exist(videos, json_file, frame_root)
    logger.info(f"{json_file}: {len(videos)} videos, {sum(video['length'] for video in videos)} frames")
    return videos


def read_videos(data: Mapping[str, Any], json_file: str, frame_root: str) -> list[dict[str, Any]]:
    """The checked video dicts of a file that has been read, as ``load_ytvis``; frames are not looked for."""
    folder = os.path.abspath(frame_root)
    videos, ids = [], set()
    for number, video in enumerate(data["videos"]):
        require_keys(video, {"id": int, "height": int, "width": int}, f"{json_file}: video number {number} (from 0)")
        where = f"{json_file}: video {video['id']}"
        names = video.get("file_names")
        if not names:
            raise DatasetError(f"{where} has no file_names; list its frames, relative to the frame folder.")
        if not isinstance(names, list) or set(map(type, names)) != {str}:
            raise DatasetError(f"{where} has file_names that are not a list of texts; list its frames, relative to the frame folder.")
        if min(video["height"], video["width"]) < 1:
            raise DatasetError(f"{where} is {video['width']} x {video['height']} pixels; width and height must be at least 1.")
        if video.get("length", len(names)) != len(names):
            raise DatasetError(f"{where} has the length {video['length']} but {len(names)} file_names; the two must agree.")
        if video["id"] in ids:
            raise DatasetError(f"{where}: this id occurs twice; give each video its own.")
        ids.add(video["id"])
        files = [os.path.join(folder, name) for name in names]
        videos.append(
            {"video_id": video["id"], "file_names": files, "height": video["height"], "width": video["width"], "length": len(files)}
        )
    return videos


def check_frames_exist(videos: Sequence[Mapping[str, Any]], json_file: str, frame_root: str) -> None:
    """Look for the first and last frame of some videos: a folder that was unpacked in part lacks whole videos.

    Raises:
        FileNotFoundError: the folder or one of these frames is missing.
    """
    frames = [file for video in videos for file in (video["file_names"][0], video["file_names"][-1])]
    check_pictures_exist(frames, os.path.abspath(frame_root), json_file, ends=8)
