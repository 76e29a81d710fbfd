"""Small video files, written with real encoders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import av
import numpy as np
import pytest

WIDTH, HEIGHT = 64, 48


def pictures(count: int, width: int = WIDTH, height: int = HEIGHT) -> list[np.ndarray]:
    """Frames that differ: a bright block wanders over noise that stands still, so that encoders have no reason for another key frame."""
    noise = np.random.default_rng(0).integers(0, 120, (height, width, 3), dtype=np.uint8)
    images = [noise.copy() for _ in range(count)]
    for i, image in enumerate(images):
        image[4 * i % (height - 12) :, 5 * i % (width - 12) :][:12, :12] = 250
    return images


def write_video(
    path: str | os.PathLike,
    images: Sequence[np.ndarray],
    codec: str = "ffv1",
    pixels: str = "bgr0",
    gop: int = 12,
    b_frames: int = 0,
    format: str | None = None,
    container_options: Mapping[str, str] | None = None,
    container_metadata: Mapping[str, str] | None = None,
    **options: str,
) -> str:
    """Write (H, W, 3) uint8 RGB images as a video; the default codec keeps them as they are.

    Args:
        path: its suffix decides the container.
        images: the frames.
        codec: of FFmpeg; the test is skipped where there is no such encoder.
        pixels: the codec's pixel format.
        gop: frames from one key frame to the next.
        b_frames: largest number of frames in a row that refer to later ones.
        format: the container, where the suffix does not say.
        container_options: of the container.
        container_metadata: tags of the file.
        **options: of the encoder.
    """
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this FFmpeg cannot write {codec}")
    with av.open(os.fspath(path), "w", format=format, options=dict(container_options or {})) as container:
        container.metadata.update(container_metadata or {})
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = pixels, gop, b_frames
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return os.fspath(path)
