"""Clips: which frames, and that all are augmented alike."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from solotrack.config import load_config
from solotrack.data import video_file
from solotrack.data.clip_mapper import ClipMapper, sample_clips
from solotrack.data.frames import FrameError, open_frames
from solotrack.data.intensity import Stretch
from tests import tiny
from tests.videos import HEIGHT, WIDTH, pictures, write_video


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The mapper draws from NumPy's global state."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    yield
    np.random.set_state(before)  # noqa: NPY002


@pytest.mark.parametrize("frames", [2, 3, 4])
@pytest.mark.parametrize(("count", "max_gap"), [(4, 1), (4, 3), (5, 9), (7, 3), (30, 3), (30, 1)])
def test_gaps_and_places(frames: int, count: int, max_gap: int) -> None:
    clips = sample_clips(count, 4000, frames, max_gap, np.random.default_rng(0))
    assert {len(clip) for clip in clips} == {frames} and len(clips) == 4000
    assert all(type(index) is int and 0 <= index < count for clip in clips for index in clip)
    gaps = Counter(int(gap) for clip in clips for gap in np.diff(clip))
    largest = min(max_gap, (count - 1) // (frames - 1))  # a short video gets smaller gaps
    assert set(gaps) == set(range(1, largest + 1))
    assert max(gaps.values()) < 1.2 * min(gaps.values())
    assert {clip[0] for clip in clips} >= {0} and {clip[-1] for clip in clips} >= {count - 1}


def test_places_are_equally_likely_for_given_gaps() -> None:
    starts = Counter(clip[0] for clip in sample_clips(10, 20000, 2, 3, np.random.default_rng(0)) if clip[1] - clip[0] == 3)
    assert set(starts) == set(range(7)) and max(starts.values()) < 1.2 * min(starts.values())


def test_clips_are_decided_by_the_generator() -> None:
    draws = [sample_clips(50, 6, 3, 4, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert sample_clips(3, 2, 3, 5, np.random.default_rng(0)) == [(0, 1, 2)] * 2
    assert sample_clips(3, 0, 3, 5, np.random.default_rng(0)) == []
    with pytest.raises(ValueError, match="clip of 3 frames cannot be drawn from a video of 2"):
        sample_clips(2, 1, 3, 1, np.random.default_rng(0))


COUNT = 12
IMAGES = pictures(COUNT)


@pytest.fixture(scope="module", params=["folder", "list", "video"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str | list[str]:
    folder = tmp_path_factory.mktemp("source")
    if request.param == "video":
        return write_video(folder / "v.mkv", IMAGES, gop=5)
    paths = [str(folder / f"{i}.png") for i in range(COUNT)]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    return str(folder) if request.param == "folder" else paths


def mapper(**changes: Any) -> ClipMapper:
    """One that changes nothing but what ``changes`` say."""
    fixed = {"INPUT.CLIPS.MIN_SIZE_TRAIN": [HEIGHT], "INPUT.RANDOM_FLIP": "none"}
    return ClipMapper(load_config("", tiny.words(fixed | {key.replace("__", "."): value for key, value in changes.items()})))


def numbers(clip: dict[str, Any]) -> list[int]:
    """Which frames of the video a clip has, from their names."""
    return [int(name.rpartition("#")[2]) if "#" in name else int(Path(name).stem) for name in clip["file_names"]]


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_frames_of_every_kind_of_video(source: str | list[str], image_format: str) -> None:
    draw = mapper(INPUT__CLIPS__FRAMES=3, INPUT__FORMAT=image_format)
    names = [frame.name for frame in open_frames(source)]
    seen = set()
    for _ in range(40):
        clip = draw({"source": source, "annotations": None, "video_id": 3})
        assert clip.keys() == {"frames", "file_names", "height", "width", "video"} and (clip["height"], clip["width"]) == (HEIGHT, WIDTH)
        assert clip["video"] == (source if isinstance(source, str) else source[0])
        found = numbers(clip)
        assert all(1 <= gap <= 3 for gap in np.diff(found))
        assert clip["file_names"] == [names[number] for number in found]
        for frame, number in zip(clip["frames"], found, strict=True):
            assert frame.dtype == torch.uint8 and frame.is_contiguous() and frame.shape == (3, HEIGHT, WIDTH)
            image = frame.permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(image if image_format == "RGB" else image[..., ::-1], IMAGES[number])
        seen.add(tuple(found))
    assert len(seen) > 20


def test_one_size_and_one_flip_a_clip(source: str | list[str]) -> None:
    draw = mapper(INPUT__CLIPS__FRAMES=2, INPUT__CLIPS__MIN_SIZE_TRAIN=[24, 36], INPUT__RANDOM_FLIP="horizontal")
    seen = Counter()
    for _ in range(60):
        clip = draw({"source": source})
        shape = tuple(clip["frames"][0].shape)
        assert shape in {(3, 24, 32), (3, 36, 48)} and {tuple(frame.shape) for frame in clip["frames"]} == {shape}
        flips = set()
        for frame, number in zip(clip["frames"], numbers(clip), strict=True):
            resized = np.asarray(Image.fromarray(IMAGES[number]).resize(shape[:0:-1], Image.Resampling.BILINEAR))
            image = frame.permute(1, 2, 0).numpy()
            flips.add(bool((image == resized[:, ::-1]).all()))
            assert flips <= {True} or (image == resized).all()
        assert len(flips) == 1
        seen[(shape, *flips)] += 1
    assert len(seen) == 4 and min(seen.values()) > 4
    limited = mapper(INPUT__CLIPS__MIN_SIZE_TRAIN=[48], INPUT__CLIPS__MAX_SIZE_TRAIN=40)({"source": source})
    assert limited["frames"][0].shape == (3, 30, 40)
    upside_down = [mapper(INPUT__RANDOM_FLIP="vertical")({"source": source}) for _ in range(12)]
    tops = [np.array_equal(clip["frames"][0].permute(1, 2, 0).numpy()[::-1], IMAGES[numbers(clip)[0]]) for clip in upside_down]
    assert any(tops) and not all(tops)


def test_colours_are_drawn_for_each_frame(tmp_path: Path) -> None:
    still = write_video(tmp_path / "still.mkv", [IMAGES[0]] * 6)
    plain, jittered = (mapper(INPUT__CLIPS__FRAMES=4, INPUT__CLIPS__COLOR=strength)({"source": still})["frames"] for strength in (0.0, 0.4))
    assert all(torch.equal(frame, plain[0]) for frame in plain)
    differences = [(frame.float() - plain[0].float()).abs().mean().item() for frame in jittered]
    assert len(set(differences)) == 4 and max(differences) < 0.9 * plain[0].float().mean() and max(differences) > 2


def test_grey_levels_are_stretched_as_in_images(source: str | list[str]) -> None:
    clip = mapper(INPUT__STRETCH__ENABLED=True, INPUT__STRETCH__LOW=5.0, INPUT__STRETCH__HIGH=60.0)({"source": source})
    for frame, number in zip(clip["frames"], numbers(clip), strict=True):
        np.testing.assert_array_equal(frame.permute(1, 2, 0).numpy(), Stretch(5.0, 60.0, 1.0)(IMAGES[number]))


def test_frames_of_another_size_are_brought_to_the_first_ones(tmp_path: Path) -> None:
    images = [IMAGES[0], cv2.resize(IMAGES[1], (100, 90))]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    clip = mapper()({"source": str(tmp_path)})
    assert [tuple(frame.shape) for frame in clip["frames"]] == [(3, HEIGHT, WIDTH)] * 2 and clip["height"] == HEIGHT
    np.testing.assert_array_equal(clip["frames"][1].permute(1, 2, 0).numpy(), cv2.resize(images[1], (WIDTH, HEIGHT)))
    paths = [str(tmp_path / "1.png"), str(tmp_path / "0.png")]
    assert mapper(INPUT__CLIPS__MIN_SIZE_TRAIN=[90])({"source": paths})["frames"][1].shape == (3, 90, 100)


def test_broken_frames_are_named(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(IMAGES[i]).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:300])
    with pytest.raises(FrameError, match=r"1\.png cannot be read"):
        mapper(INPUT__CLIPS__FRAMES=3)({"source": str(tmp_path)})
    (tmp_path / "1.png").unlink()
    with pytest.raises(FrameError, match=r"1\.png does not exist"):
        mapper(INPUT__CLIPS__FRAMES=3)({"source": [str(tmp_path / f"{i}.png") for i in range(3)]})
    with pytest.raises(FrameError, match=r"a\.mkv has fewer frames \(3\) than a clip \(4\): it was changed, or is cut short"):
        mapper(INPUT__CLIPS__FRAMES=4)({"source": write_video(tmp_path / "a.mkv", IMAGES[:3])})


def test_views_move_each_frame_on_its_own(tmp_path: Path) -> None:
    """One still scene: without views its frames are equal; with them each is a similarity of it, and all keep the size."""
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), (0, 0), 3)
    for i in range(3):
        Image.fromarray(scene).save(tmp_path / f"{i}.png")
    first, second = mapper()({"source": str(tmp_path)})["frames"]
    assert torch.equal(first, second)
    views = {"INPUT__CLIPS__VIEWS": True, "INPUT__VIEWS__SCALE_RANGE": [1.0, 1.0], "INPUT__VIEWS__ROTATION": 0.0, "INPUT__VIEWS__FLIP": 0.0}
    draw = mapper(**views, INPUT__VIEWS__SHIFT=0.2)
    moved = set()
    for _ in range(5):
        for frame in draw({"source": str(tmp_path)})["frames"]:
            assert frame.shape == (3, HEIGHT, WIDTH)
            shift, _ = cv2.phaseCorrelate(*(x.astype(np.float32) for x in (scene[..., 0], frame[0].numpy())))
            moved.add(tuple(np.round(shift).astype(int).tolist()))
            assert abs(shift[0]) <= 0.2 * WIDTH + 1 and abs(shift[1]) <= 0.2 * HEIGHT + 1
    assert len(moved) > 8


def test_a_large_set_of_files_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_video(tmp_path / "0.mkv", pictures(3))
    files = [first, *(shutil.copy(first, tmp_path / f"{number}.mkv") for number in range(1, 80))]
    index_of, looked = video_file._Index.of, []
    monkeypatch.setattr(video_file._Index, "of", lambda container: looked.append(container.name) or index_of(container))
    clips = mapper()
    for _ in range(2):
        for file in files:
            clips({"source": str(file)})
    assert sorted(looked) == sorted(map(str, files))
