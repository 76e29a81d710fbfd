"""Frames in any order, of sources in general; of video files see test_video_file."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from PIL import Image

from solotrack.data.frame_source import FrameSource, InOrderOnlyError
from solotrack.data.frames import open_frames
from tests.videos import pictures, write_video

COUNT = 11


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("sources")
    images = pictures(COUNT)
    (folder / "frames").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / "frames" / f"{i}.png")
    return {"arrays": images, "folder": folder / "frames", "video": write_video(folder / "v.mkv", images, gop=4)}


@pytest.mark.parametrize("kind", ["arrays", "folder", "video"])
@pytest.mark.parametrize(("every", "most"), list(product((1, 2, 3), (None, 1, 3, 100))))
def test_any_order_gives_what_iterating_gives(sources, kind: str, every: int, most: int | None) -> None:
    source = open_frames(sources[kind], "BGR", every=every, max_frames=most)
    frames = list(source)
    assert source.count() == len(frames)
    for limit in (1, 2, 50):
        assert open_frames(sources[kind], every=every, max_frames=most).count(limit) >= min(limit, len(frames))
    order = np.random.default_rng(0).integers(0, len(frames), 7).tolist()  # with repetitions
    for index, frame in zip(order, source.read(order), strict=True):
        assert (frame.index, frame.name) == (index, frames[index].name)
        np.testing.assert_array_equal(frame.image, frames[index].image)
    assert source.read([]) == []
    for index in (-1, len(frames)):
        with pytest.raises(IndexError, match=rf"no frames \[{index}\]; the video has {len(frames)}"):
            source.read([0, index])


def test_counting_stops_at_the_limit(sources) -> None:
    assert open_frames(sources["video"]).count(4) == 4
    assert open_frames(sources["video"], every=3).count(2) == 2
    assert open_frames(sources["video"], every=3).count(9) == 4


def test_sources_without_an_order_of_their_own_are_refused() -> None:
    for source in (open_frames(image for image in pictures(3)), Endless("RGB", 1, None, None, None)):
        for ask in (source.count, lambda source=source: source.read([0])):
            with pytest.raises(InOrderOnlyError, match="in order only and cannot be read at random; record them to a file"):
                ask()


class Endless(FrameSource):
    def _read_jobs(self):
        while True:
            yield "again", lambda: np.zeros((2, 2, 3), np.uint8)
