"""Write frames to an mp4 file."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import cv2
import numpy as np

__all__ = ["VideoWriter", "fit_frame"]


def fit_frame(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bring a frame (h, w, 3) to (height, width, 3): one missing row or column is repeated, any other size is scaled into black bars."""
    rows, columns = height - image.shape[0], width - image.shape[1]
    if rows == 0 and columns == 0:
        return image
    if 0 <= rows <= 1 and 0 <= columns <= 1:
        return cv2.copyMakeBorder(image, 0, rows, 0, columns, cv2.BORDER_REPLICATE)
    scale = min(height / image.shape[0], width / image.shape[1])
    h, w = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - h) // 2, (width - w) // 2
    return cv2.copyMakeBorder(image, top, height - h - top, left, width - w - left, cv2.BORDER_CONSTANT)


class VideoWriter:
    """An mp4 file (H.264 where PyAV has x264, else MPEG-4) that appears under its name only when it is whole.

    Used as a context manager; leaving it by an exception removes what was written. The first frame sets the size, rounded up to even
    numbers; later frames of another size are fitted into it (``fit_frame``).

    Args:
        path: the file to write; an existing one is replaced on closing.
        fps: frames a second.
        quality: x264's constant rate factor, 0 (lossless) to 51; 18 looks lossless.
    """

    def __init__(self, path: str | os.PathLike, fps: float = 10.0, quality: int = 20) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps is {fps}; it must be greater than 0 and finite.")
        self.path = Path(path)
        self.frames = 0
        self._fps = Fraction(fps).limit_denominator(1001)
        self._quality = quality
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._container = None
        self._stream = None

    def _open(self, height: int, width: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._partial), "w", format="mp4")
        if "libx264" in av.codecs_available:
            stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": str(self._quality), "preset": "veryfast"})
        else:
            stream = self._container.add_stream("mpeg4", rate=self._fps)
            stream.bit_rate = max(1_000_000, int(height * width * self._fps / 4))
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        self._stream = stream

    def write(self, image: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8 RGB."""
        if self._container is None:
            self._open(*image.shape[:2])
        image = np.ascontiguousarray(fit_frame(image, self._stream.height, self._stream.width))
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; without a frame no file is made."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode())
            container.close()
            os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    def discard(self) -> None:
        """Drop what was written."""
        if self._container is not None:
            self._container.close()
            self._container = None
        self._partial.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close() if kind is None else self.discard()
