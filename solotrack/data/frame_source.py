"""What every source of a video's frames has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from solotrack.errors import SoloTrackError

__all__ = ["Frame", "FrameError", "FrameSource", "InOrderOnlyError", "ReadJob"]

ReadJob = tuple[str, Callable[[], np.ndarray]]  # a frame's name and the call that decodes it


class FrameError(SoloTrackError, RuntimeError):
    """A frame or video that cannot be read; the message names the file and the remedy."""


class InOrderOnlyError(FrameError):
    """A camera or an iterator, whose frames come in order only, was asked for more."""


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        index: position among the frames that the source yields, from 0.
        image: (H, W, 3) uint8 in the source's ``image_format``; may be read-only.
        name: the file's path, or ``clip.mp4#12`` (12 counts every frame of the file).
    """

    index: int
    image: np.ndarray
    name: str


class FrameSource(ABC):
    """A video that can be iterated over: ``for frame in source``. All but cameras and generators can also be read in any order.

    Attributes:
        image_format: "RGB" or "BGR", the channel order of the frames.
        length: number of frames it yields, None where that is not known beforehand. A video file's header may be wrong: use it for
            progress only, and ``count`` where it must be right.
        fps: frames a second that it yields, None where there is no such thing (image files, arrays).
        parallel: whether the frames can be decoded independently of one another.
        repeatable: whether the frames can be iterated over more than once.
    """

    parallel = False
    repeatable = True

    def __init__(self, image_format: str, every: int, max_frames: int | None, length: int | None, fps: float | None) -> None:
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format is {image_format!r}; allowed: 'RGB', 'BGR'.")
        if every < 1 or (max_frames is not None and max_frames < 1):
            raise ValueError(f"every ({every}) and max_frames ({max_frames}) must be at least 1.")
        self.image_format = image_format
        self.fps = fps / every if fps else None
        self._every = every
        self._stop = None if max_frames is None else (max_frames - 1) * every + 1
        self.length = None if length is None else self._wanted_of(length)

    def _wanted_of(self, total: int) -> int:
        """How many frames are yielded of a video of ``total`` frames."""
        return math.ceil((total if self._stop is None else min(total, self._stop)) / self._every)

    @abstractmethod
    def _read_jobs(self) -> Iterator[ReadJob]:
        """Every frame of the video, not yet decoded as far as that can be put off."""

    def _total(self, limit: int | None = None) -> int:
        """Exact number of frames of the video, or ``limit`` where there are at least that many."""
        del limit
        raise InOrderOnlyError(
            f"{type(self).__name__} yields frames in order only and cannot be read at random; record them to a file first."
        )

    def _read_jobs_at(self, numbers: Sequence[int]) -> list[ReadJob]:
        """The frames of these numbers, counting every frame of the video, in the same order."""
        raise NotImplementedError

    def jobs(self) -> Iterator[Callable[[], Frame]]:
        """The wanted frames in order, each as a call that returns it."""
        with closing(self._read_jobs()) as read_jobs:
            for index, (name, read) in enumerate(islice(read_jobs, 0, self._stop, self._every)):
                yield partial(_load, index, name, read)

    def __iter__(self) -> Iterator[Frame]:
        with closing(self.jobs()) as jobs:
            for job in jobs:
                yield job()

    def count(self, limit: int | None = None) -> int:
        """Exact number of frames that it yields; nothing is decoded.

        Args:
            limit: stop counting there. A video file's packets are all read otherwise.

        Raises:
            InOrderOnlyError: of a camera or an iterator.
            FrameError: a file that is broken.
        """
        return self._wanted_of(self._total(None if limit is None else (limit - 1) * self._every + 1))

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames at these positions among those it yields, in the order asked for; of a video file no more is decoded than it takes.

        Raises:
            IndexError: a position that it does not have.
            InOrderOnlyError: of a camera or an iterator.
            FrameError: a frame that cannot be read.
        """
        count = self.count()
        beyond = [index for index in indices if not 0 <= index < count]
        if beyond:
            raise IndexError(f"There are no frames {beyond}; the video has {count}.")
        jobs = self._read_jobs_at([index * self._every for index in indices])
        return [_load(index, name, read) for index, (name, read) in zip(indices, jobs, strict=True)]


def _load(index: int, name: str, read: Callable[[], np.ndarray]) -> Frame:
    return Frame(index, read(), name)
