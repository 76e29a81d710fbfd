"""The videos that unlabelled clips are drawn from: lists of them only. Nothing is decoded, and no annotation is looked at."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from solotrack.config import ConfigError

from .annotation_file import DatasetError
from .catalog import dataset_metadata, load_dataset
from .frames import IMAGE_SUFFIXES, natural_key, open_frames
from .video_file import VIDEO_SUFFIXES

__all__ = ["load_clip_videos"]

logger = logging.getLogger(__name__)

_OPENERS = 16  # threads that look into video files, which is mostly waiting for a disk


def load_clip_videos(cfg: CfgNode) -> list[dict[str, Any]]:
    """The videos of DATASETS.TRAIN_CLIPS, sets of YouTube-VIS jsons or of DATASETS.CUSTOM.CLIPS, that have INPUT.CLIPS.FRAMES frames.

    Returns:
        Dicts with ``source``, which ``open_frames`` takes: a list of image files, a folder of them, or a video file.

    Raises:
        ConfigError: a set of images, a name that two sets have, or no video with enough frames.
        FileNotFoundError, DatasetError: a set cannot be read, or holds no videos.
        FrameError: a video file that cannot be opened.
    """
    names, frames = list(cfg.DATASETS.TRAIN_CLIPS), cfg.INPUT.CLIPS.FRAMES
    without_json = dict(cfg.DATASETS.CUSTOM.CLIPS)
    videos = []
    for name in names:
        if name not in without_json:
            videos += _of_json(name)
        elif name in DatasetCatalog:
            raise ConfigError(f"DATASETS.CUSTOM.CLIPS calls a set {name!r}, but another data set has that name; choose a new name.")
        else:
            videos += _of_disk(name, without_json[name], frames)
    short = [source for source, count in videos if count < frames]
    if len(short) == len(videos):
        raise ConfigError(
            f"None of the {len(videos)} videos of DATASETS.TRAIN_CLIPS ({', '.join(names)}) has INPUT.CLIPS.FRAMES ({frames}) frames; "
            "name longer videos, or take clips of fewer frames."
        )
    text = f"Clips come from {len(videos) - len(short)} videos of {', '.join(names)}"
    if short:
        text += f"; {len(short)} with fewer than {frames} frames are left out, the first is {_name(short[0])}"
    logger.info(text)
    return [{"source": source} for source, count in videos if count >= frames]


_Video = tuple[str | list[str], int]  # source, number of frames (of a video file: up to as many as a clip takes)


def _name(source: str | list[str]) -> str:
    return source if isinstance(source, str) else os.path.dirname(source[0])


def _of_json(name: str) -> list[_Video]:
    if dataset_metadata(name).get("evaluator_type") != "ytvis":
        raise ConfigError(f"DATASETS.TRAIN_CLIPS has {name}, which is a set of images; clips come from videos.")
    return [(video["file_names"], len(video["file_names"])) for video in load_dataset(name)]


def _of_disk(name: str, source: str, frames: int) -> list[_Video]:
    """Videos of an entry of DATASETS.CUSTOM.CLIPS, in natural order."""
    path = os.path.abspath(os.path.expanduser(source))
    if os.path.exists(path):
        found = [path]
    elif glob.has_magic(path):
        found = [match for match in glob.glob(path, recursive=True) if not os.path.basename(match).startswith(".")]
    else:
        raise DatasetError(f"The clips {name} are not here: there is no {path}; give a video file, a folder of videos or a pattern.")
    folders, files = {}, set()
    wanted = VIDEO_SUFFIXES | ({_suffix(path)} - {""})  # of what a pattern finds, unless it names another: "*.y4m"
    for match in found:
        if not os.path.isdir(match):
            _check_suffix(name, match)
            if match == path or _suffix(match) in wanted:
                files.add(match)
            continue
        for folder, members in _walk(match):
            images = sum(_suffix(member) in IMAGE_SUFFIXES for member in members)
            folders |= {folder: images} if images else {}
            files |= {os.path.join(folder, member) for member in members if _suffix(member) in VIDEO_SUFFIXES}
    files = sorted(files)
    with ThreadPoolExecutor(_OPENERS) as pool:
        videos = folders | dict(zip(files, pool.map(lambda file: open_frames(file).count(frames), files), strict=True))
    if not videos:
        raise DatasetError(f"The clips {name} are empty: there are neither video files nor folders of frames at {path}.")
    return sorted(videos.items(), key=lambda video: natural_key(video[0]))


def _walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) of a folder and of all below it, hidden ones left out."""
    seen = set()
    for folder, subfolders, members in os.walk(root, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to where the walk has been
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [subfolder for subfolder in subfolders if not subfolder.startswith(".")]
        yield folder, [member for member in members if not member.startswith(".")]


def _raise(error: OSError) -> None:
    raise error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _check_suffix(name: str, file: str) -> None:
    if _suffix(file) == ".json":
        raise DatasetError(f"The clips {name} are a json, {file}; name it where YouTube-VIS files go (DATASETS.CUSTOM.VIDEOS).")
    if _suffix(file) in IMAGE_SUFFIXES:
        raise DatasetError(f"The clips {name} are single images such as {file}; give the folder that holds a video's frames.")
