"""Frames of a video, one at a time, from image files, a video file, a camera or memory.

``open_frames`` gives one interface over all of them. No source ever holds the whole video.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image
from PIL import Image, ImageOps

from .frame_source import Frame, FrameError, FrameSource, InOrderOnlyError, ReadJob
from .video_file import VideoFile

__all__ = ["IMAGE_SUFFIXES", "Frame", "FrameError", "FrameSource", "InOrderOnlyError", "natural_key", "open_frames", "read_frame_image"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})

_FEW_LEVELS = 32  # grey levels at 8 bits below which a 16-bit image deserves a warning, once a folder
_warned_folders: set[str] = set()


def _reorder(image: np.ndarray, have: str, want: str) -> np.ndarray:
    return image if have == want else np.ascontiguousarray(image[..., ::-1])


def read_frame_image(path: str | os.PathLike, image_format: str = "RGB") -> np.ndarray:
    """An image file as (H, W, 3) uint8, turned upright by its EXIF orientation as Detectron2's ``read_image`` does.

    Grey images get three equal channels and alpha is dropped. 16-bit grey is divided by 257, in every frame alike; PIL would clip at 255.

    Raises:
        FrameError: missing, corrupt or truncated file, or more bits than 16.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            deep = np.asarray(ImageOps.exif_transpose(image)) if mode.startswith(("I", "F")) else None
        if deep is None:
            return np.ascontiguousarray(read_image(os.fspath(path), image_format))
    except FileNotFoundError:
        raise FrameError(f"The frame {path} does not exist; check the path, or whether the frames were unpacked there.") from None
    except Exception as error:  # PIL raises many kinds on broken files
        raise FrameError(
            f"The frame {path} cannot be read ({error}): the file is corrupt or cut short; copy or extract it again."
        ) from error
    if mode.startswith("F") or deep.min() < 0 or deep.max() > 65535:
        raise FrameError(f"The frame {path} has {mode} pixels that are not 8 or 16 bit grey levels; save it with 8 or 16 bits a channel.")
    folder = os.path.dirname(path)
    if 0 < deep.max() < _FEW_LEVELS * 257 and folder not in _warned_folders:
        _warned_folders.add(folder)
        logging.getLogger(__name__).warning(
            f"{folder or '.'} has 16-bit images that use little of their range (largest value {deep.max()} of 65535), so that few grey "
            "levels are left at 8 bits. Scale them to the full range when you save them."
        )
    grey = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


class ImageFiles(FrameSource):
    """A list of image files in the given order."""

    parallel = True

    def __init__(self, paths: Sequence[str | os.PathLike], image_format: str, every: int = 1, max_frames: int | None = None) -> None:
        if len(paths) == 0:
            raise FrameError("The list of frames is empty; give at least one image file.")
        super().__init__(image_format, every, max_frames, length=len(paths), fps=None)
        self._paths = [os.fspath(p) for p in paths]

    def _read_jobs(self) -> Iterator[ReadJob]:
        for path in self._paths:
            yield self._job(path)

    def _read_jobs_at(self, numbers: Sequence[int]) -> list[ReadJob]:
        return [self._job(self._paths[number]) for number in numbers]

    def _job(self, path: str) -> ReadJob:
        return path, partial(read_frame_image, path, self.image_format)

    def _total(self, limit: int | None = None) -> int:
        return len(self._paths)


class Camera(FrameSource):
    """A camera by its number, read until it stops or the iteration is given up."""

    repeatable = False

    def __init__(self, number: int, image_format: str, every: int = 1, max_frames: int | None = None) -> None:
        self._number = number
        capture = self._open()
        fps = capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        super().__init__(image_format, every, max_frames, length=None, fps=fps if fps > 0 else None)

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(self._number)
        if not capture.isOpened():
            capture.release()
            raise FrameError(
                f"The camera {self._number} cannot be opened; check that it is plugged in, allowed and not in use by another program."
            )
        return capture

    def _read_jobs(self) -> Iterator[ReadJob]:
        capture = self._open()
        try:
            number = 0
            while True:
                good, image = capture.read()  # BGR
                if not good:
                    return
                yield f"camera:{self._number}#{number}", partial(_reorder, image, "BGR", self.image_format)
                number += 1
        finally:
            capture.release()


class ArrayFrames(FrameSource):
    """Frames in memory or made on the fly: an iterable of (H, W, 3) uint8 RGB arrays."""

    def __init__(self, arrays: Iterable[np.ndarray], image_format: str, every: int = 1, max_frames: int | None = None) -> None:
        super().__init__(image_format, every, max_frames, length=len(arrays) if hasattr(arrays, "__len__") else None, fps=None)
        if self.length == 0:
            raise FrameError("The list of frames is empty; give at least one (H, W, 3) uint8 array.")
        self._arrays = arrays
        self.repeatable = not isinstance(arrays, Iterator)

    def _read_jobs(self) -> Iterator[ReadJob]:
        for number, array in enumerate(self._arrays):
            yield self._job(array, number)

    def _read_jobs_at(self, numbers: Sequence[int]) -> list[ReadJob]:
        return [self._job(self._arrays[number], number) for number in numbers]

    def _job(self, array: np.ndarray, number: int) -> ReadJob:
        return f"array#{number}", partial(self._check, array, number)

    def _total(self, limit: int | None = None) -> int:
        if hasattr(self._arrays, "__len__") and hasattr(self._arrays, "__getitem__"):
            return len(self._arrays)
        return super()._total(limit)

    def _check(self, array: np.ndarray, number: int) -> np.ndarray:
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            got = f"{array.dtype} array of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise FrameError(f"Frame {number} in memory is a {got}; give (H, W, 3) uint8 arrays in RGB.")
        return _reorder(array, "RGB", self.image_format)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts ``frame2`` before ``frame10``."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def _folder_images(folder: Path) -> list[Path]:
    images = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not images:
        raise FrameError(
            f"The folder {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give the folder that holds the frames themselves."
        )
    return sorted(images, key=lambda p: natural_key(p.name))


def _open_path(text: str, **options: Any) -> FrameSource:
    if text.startswith("camera:"):
        number = text.removeprefix("camera:")
        if not number.isdecimal():
            raise FrameError(f"{text!r} names no camera; write camera:0 for the first one.")
        return Camera(int(number), **options)
    path = Path(text)
    if path.is_dir():
        return ImageFiles(_folder_images(path), **options)
    if path.is_file():
        return ImageFiles([path], **options) if path.suffix.lower() in IMAGE_SUFFIXES else VideoFile(path, **options)
    if glob.has_magic(text):
        matches = sorted((m for m in glob.glob(text, recursive=True) if os.path.isfile(m)), key=natural_key)
        if not matches:
            raise FrameError(f"No file matches the pattern {text}; check it, and quote it on a command line.")
        return ImageFiles(matches, **options)
    raise FrameError(f"There is no file, folder or pattern {text}; give a video file, a folder of images, a quoted pattern, or camera:0.")


def open_frames(
    source: str | os.PathLike | Mapping[str, Any] | Sequence[str | os.PathLike] | Iterable[np.ndarray] | FrameSource,
    image_format: str = "RGB",
    *,
    every: int = 1,
    max_frames: int | None = None,
) -> FrameSource:
    """Open anything that holds the frames of one video.

    Args:
        source: a video file, a folder of images (in natural order), a glob pattern (likewise), one image, ``camera:0``, a list of image
            files, a video dict (its ``file_names``), an iterable of (H, W, 3) uint8 RGB arrays, or a FrameSource (returned as it is).
        image_format: channel order of the frames, "RGB" or "BGR".
        every: take each ``every``-th frame only.
        max_frames: stop after this many frames taken.

    Raises:
        FrameError: nothing there, or not readable. Single frames are read, and may raise, while iterating.
    """
    options = {"image_format": image_format, "every": every, "max_frames": max_frames}
    if isinstance(source, FrameSource):
        if source.image_format != image_format or every != 1 or max_frames is not None:
            raise ValueError("The frame source is open already: give image_format, every and max_frames where it is opened.")
        return source
    if isinstance(source, Mapping):
        if "file_names" not in source:
            raise FrameError("The video dict has no file_names; list its frames there.")
        return ImageFiles(source["file_names"], **options)
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fspath(source), **options)
    if isinstance(source, (list, tuple)) and (len(source) == 0 or isinstance(source[0], (str, os.PathLike))):
        return ImageFiles(source, **options)
    if isinstance(source, Iterable):
        return ArrayFrames(source, **options)
    raise FrameError(
        f"A {type(source).__name__} holds no frames; give a path, a list of image files or an iterable of (H, W, 3) uint8 arrays."
    )
