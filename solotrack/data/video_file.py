"""Video files, decoded with PyAV: as a stream, or frame by frame from the key frame before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

import av
import numpy as np

from .frame_source import FrameError, FrameSource, ReadJob

__all__ = ["VIDEO_SUFFIXES", "VideoFile"]

# What tells a video file from other files of a folder; a file that is named itself may have any.
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp"}
)


class VideoFile(FrameSource):
    """A video file, turned upright by its display matrix."""

    def __init__(self, path: str | os.PathLike, image_format: str, every: int = 1, max_frames: int | None = None) -> None:
        self._path = os.fspath(path)
        self._index: _Index | None = None
        with self._open() as container:
            stream = container.streams.video[0]
            length, fps = stream.frames or None, stream.average_rate
        super().__init__(image_format, every, max_frames, length, float(fps) if fps else None)

    def _open(self) -> av.container.InputContainer:
        try:
            # A packet that the file's end cuts through is left out: it counts as a frame, and whether a decoder gives it, drops it or
            # stops at it depends on its threads. A tag in another encoding is no fault of the pictures.
            container = av.open(self._path, options={"fflags": "+discardcorrupt"}, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            raise FrameError(
                f"The video {self._path} cannot be opened ({error}): not a video file, or cut short; re-encode it with ffmpeg."
            ) from error
        if not container.streams.video:
            container.close()
            raise FrameError(f"The file {self._path} has no picture in it (sound only, or cut short); give a video or a folder of images.")
        return container

    def _read_jobs(self) -> Iterator[ReadJob]:
        count = 0
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for picture in container.decode(stream):
                    yield f"{self._path}#{count}", partial(self._convert, picture)
                    count += 1
            except av.FFmpegError as error:
                raise self._corrupt(count, error) from error
        if count == 0:
            raise self._empty()

    def _read_jobs_at(self, numbers: Sequence[int]) -> list[ReadJob]:
        try:
            pictures = _decode(self._open, self._indexed(), sorted(set(numbers)))
        except av.FFmpegError as error:
            raise self._corrupt(min(numbers), error) from error
        missing = sorted(set(numbers) - set(pictures))
        if missing:
            raise self._corrupt(missing[0], "there are packets but no picture")
        return [(f"{self._path}#{number}", partial(self._convert, pictures[number])) for number in numbers]

    def _total(self, limit: int | None = None) -> int:
        if limit is None or self._index is not None:
            return self._indexed().count
        try:
            with self._open() as container:
                total = sum(1 for _ in islice((packet for packet in _packets(container) if not packet.is_discard), limit))
        except av.FFmpegError as error:
            raise self._corrupt(0, error) from error
        if total == 0:
            raise self._empty()
        return total

    def _indexed(self) -> _Index:
        if self._index is None:
            try:
                with self._open() as container:
                    self._index = _Index.of(container)
            except av.FFmpegError as error:
                raise self._corrupt(0, error) from error
            if self._index.count == 0:
                raise self._empty()
        return self._index

    def _corrupt(self, number: int, why: object) -> FrameError:
        return FrameError(f"The video {self._path} cannot be decoded around frame {number} ({why}): it is corrupt there; re-encode it.")

    def _empty(self) -> FrameError:
        return FrameError(f"The video {self._path} holds no frame: it is cut short or empty; copy or record it again.")

    def _convert(self, picture: av.VideoFrame) -> np.ndarray:
        image = picture.to_ndarray(format=f"{self.image_format.lower()}24")
        quarter_turns = round(picture.rotation / 90) % 4  # counter-clockwise
        return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


@dataclass(frozen=True)
class _Index:
    """Which frames a file has and where decoding can begin, read from the packets, which are not decoded.

    Times are those of the packets, in units of the stream's time base.

    Attributes:
        count: number of frames.
        times: (count,) int64 when each frame is shown, ascending; None where the packets do not say (raw streams): such a file can be
            decoded from its start only.
        keys: (K,) int64 number of the first frame that decoding from each key frame yields, ascending.
        seeks: (K,) for each key frame the times under which a file may list it: when it is shown, or when it is decoded.
    """

    count: int
    times: np.ndarray | None
    keys: np.ndarray
    seeks: list[tuple[int, ...]]

    @classmethod
    def of(cls, container: av.container.InputContainer) -> _Index:
        packets = [(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard) for packet in _packets(container)]
        shown = [time for time, _, _, discard in packets if not discard]
        keys = sorted(((time, decoded) for time, decoded, key, _ in packets if key and time is not None), key=lambda key: key[0])
        if not keys or None in shown or len(set(shown)) < len(shown):
            return cls(len(shown), None, np.empty(0, np.int64), [])
        times = np.sort(np.array(shown, dtype=np.int64))
        times = times[times >= keys[0][0]]  # nothing can be decoded before the first key frame
        seeks = [tuple(dict.fromkeys(time for time in key if time is not None)) for key in keys]
        return cls(len(times), times, np.searchsorted(times, [time for time, _ in keys]), seeks)

    def key_before(self, number: int) -> int:
        """Index of the last key frame that a frame can be decoded from."""
        return int(np.searchsorted(self.keys, number, side="right")) - 1


def _packets(container: av.container.InputContainer) -> Iterator[av.Packet]:
    return (packet for packet in container.demux(container.streams.video[0]) if packet.size)  # the last one is empty


def _decode(open_file: Callable[[], av.container.InputContainer], index: _Index, numbers: list[int]) -> dict[int, av.VideoFrame]:
    """Decode the frames of these numbers, ascending: from the key frame before each, or, where a file does not allow that, from its start.

    Seeking is trusted only as far as the times of what comes out are those that the index has for it.
    """
    pictures: dict[int, av.VideoFrame] = {}
    if index.times is not None:
        with open_file() as container:
            container.streams.video[0].thread_count = 1  # more threads would decode frames beyond the wanted ones
            for key, group in groupby(numbers, index.key_before):
                wanted = set(group)
                for seek in index.seeks[key]:
                    pictures |= _pick(_decode_from(container, index, int(index.keys[key]), seek), wanted)
                    if wanted <= pictures.keys():
                        break
    missing = set(numbers) - pictures.keys()
    if missing:
        with open_file() as container:
            pictures |= _pick(enumerate(container.decode(container.streams.video[0])), missing)
    return pictures


def _decode_from(container: av.container.InputContainer, index: _Index, number: int, seek: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Seek to a key frame, whose first frame is ``number``, and yield (number, picture) from there on; end where the times differ."""
    stream = container.streams.video[0]
    try:
        container.seek(seek, stream=stream)
    except av.FFmpegError:  # a format without seeking
        return
    for picture in container.decode(stream):
        if picture.pts is None or number == index.count or picture.pts > index.times[number]:
            return
        if picture.pts == index.times[number]:  # else it is from an earlier key frame, or refers to frames that were not decoded
            yield number, picture
            number += 1


def _pick(numbered: Iterator[tuple[int, av.VideoFrame]], wanted: set[int]) -> dict[int, av.VideoFrame]:
    last = max(wanted)
    picked = {}
    for number, picture in numbered:
        if number in wanted:
            picked[number] = picture
        if number >= last:
            break
    return picked
