"""Single frames of video files: the very frames that decoding from the start gives."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from solotrack.data import video_file
from solotrack.data.frames import FrameError, open_frames
from tests.videos import pictures, write_video

COUNT = 40
H264 = {"codec": "libx264", "pixels": "yuv420p", "b_frames": 3}
MPEG4 = {"codec": "mpeg4", "pixels": "yuv420p", "b_frames": 2, "sc_threshold": "1000000000"}
KINDS = {  # file -> how it is written, and whether seeking works in it
    "b_frames.mp4": (H264, True),
    "open_gop.mp4": (H264 | {"x264-params": "open-gop=1"}, True),
    "b_frames.mkv": (H264, True),
    "b_frames.ts": (H264, True),  # times begin above 0
    "mpeg4.avi": (MPEG4, True),  # key frames are listed under the time they are decoded
    "lossless.mkv": ({}, True),
    "wrong_times.avi": (H264, False),  # an AVI cannot say when a B-frame is shown
    "no_times.h264": (H264, False),
}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of every frame that came out of a decoder and was not from before the key frame."""
    numbers, pick = [], video_file._pick

    def watch(numbered, wanted):
        return pick(((numbers.append(number) or number, picture) for number, picture in numbered), wanted)

    monkeypatch.setattr(video_file, "_pick", watch)
    return numbers


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_one_of_sequential_decoding(tmp_path: Path, decoded: list[int], name: str) -> None:
    options, seeks = KINDS[name]
    path = write_video(tmp_path / name, pictures(COUNT), **options)
    with av.open(path) as container:
        keys = [p.is_keyframe for p in container.demux(container.streams.video[0]) if p.size]
        assert len(keys) == COUNT and sum(keys) < COUNT / 3, "key frames are to be sparse"
    expected = list(open_frames(path))
    source = open_frames(path)
    assert source.count() == len(expected) == COUNT
    for index in np.random.default_rng(1).permutation(COUNT).tolist():
        decoded.clear()
        (frame,) = source.read([index])
        assert (frame.index, frame.name) == (index, expected[index].name)
        np.testing.assert_array_equal(frame.image, expected[index].image)
        assert not seeks or len(decoded) <= 12, "decoding begins at the key frame before"
    order = [31, 2, 30, 2, 17]
    for index, frame in zip(order, source.read(order), strict=True):
        np.testing.assert_array_equal(frame.image, expected[index].image)


def test_a_clip_within_a_group_of_frames_is_decoded_once(tmp_path: Path, decoded: list[int]) -> None:
    source = open_frames(write_video(tmp_path / "a.mkv", pictures(COUNT)))
    source.read([26, 28, 27])
    assert decoded == [24, 25, 26, 27, 28]


def test_counting_and_reading_do_not_decode_the_rest(tmp_path: Path) -> None:
    """A broken frame is met by those who decode it, and by no one else."""
    path, images = tmp_path / "a.avi", pictures(COUNT)
    write_video(path, images)
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    data = bytearray(path.read_bytes())
    at, size = packets[14]
    data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    source = open_frames(path)
    assert source.count() == COUNT and open_frames(path).count(20) == 20
    for frame, index in zip(source.read([3, 12, 24, 39]), (3, 12, 24, 39), strict=True):
        np.testing.assert_array_equal(frame.image, images[index])
    with pytest.raises(FrameError, match=r"a\.avi cannot be decoded around frame 14"):
        source.read([14])
    with pytest.raises(FrameError, match=r"a\.avi cannot be decoded"):
        list(open_frames(path))


def test_a_file_that_begins_between_key_frames(tmp_path: Path) -> None:
    """As a recording of a broadcast does: what no key frame precedes cannot be decoded and does not count."""
    path = Path(write_video(tmp_path / "a.ts", pictures(COUNT), **H264))
    data = path.read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[len(data) // 188 // 8 * 188 :])
    expected, source = list(open_frames(tmp_path / "cut.ts")), open_frames(tmp_path / "cut.ts")
    assert 12 < source.count() == len(expected) < COUNT
    for frame, other in zip(source.read(range(len(expected))), expected, strict=True):
        np.testing.assert_array_equal(frame.image, other.image)


def test_a_file_cut_short_has_the_frames_that_are_left(tmp_path: Path) -> None:
    data = Path(write_video(tmp_path / "a.mkv", pictures(COUNT))).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    source = open_frames(tmp_path / "cut.mkv")
    assert COUNT / 2 < source.count() < COUNT
    np.testing.assert_array_equal(source.read([20])[0].image, pictures(COUNT)[20])


@pytest.mark.parametrize("share", [0.5, 0.71, 0.9, 0.97])
@pytest.mark.parametrize("name", ["index_first.mp4", "a.mkv", "a.ts"])
def test_a_last_packet_that_is_cut_through_is_no_frame(tmp_path: Path, name: str, share: float) -> None:
    """What is counted, what is decoded from the start and what can be read by its number are the same frames, on any number of threads."""
    images = pictures(COUNT)
    container = {"movflags": "faststart"} if name.endswith("mp4") else {}
    data = Path(write_video(tmp_path / name, images, container_options=container, **H264)).read_bytes()
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(data[: int(len(data) * share)])
    source, expected = open_frames(cut), list(open_frames(cut))
    assert COUNT / 4 < source.count() == len(expected) < COUNT
    read = source.read(range(len(expected)))
    for frame, other in list(zip(read, expected, strict=True))[: -1 if name.endswith("ts") else None]:
        np.testing.assert_array_equal(frame.image, other.image)  # a transport stream does not say that its last picture is but a part


def test_a_tag_in_another_encoding_is_no_fault(tmp_path: Path) -> None:
    data = Path(write_video(tmp_path / "a.mkv", pictures(3), container_metadata={"title": "M?ller"})).read_bytes()
    (tmp_path / "latin.mkv").write_bytes(data.replace(b"M?ller", "Müller".encode("latin-1")))
    assert len(list(open_frames(tmp_path / "latin.mkv"))) == 3


def test_a_file_without_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mkv", pictures(5), codec="mpeg4", pixels="yuv420p")
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "header.mkv").write_bytes(data[: data.index(b"\x1f\x43\xb6\x75")])  # up to the first cluster of frames
    for limit in (None, 2):
        with pytest.raises(FrameError, match=r"header\.mkv .*cut short"):
            open_frames(tmp_path / "header.mkv").count(limit)


def test_frames_that_no_decoder_gives_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_frames(write_video(tmp_path / "a.mkv", pictures(5)))
    monkeypatch.setattr(video_file, "_pick", lambda numbered, wanted: {})
    with pytest.raises(FrameError, match=r"a\.mkv cannot be decoded around frame 3 \(there are packets but no picture\)"):
        source.read([3, 4])


def test_single_frames_are_turned_upright_too(tmp_path: Path) -> None:
    path = Path(write_video(tmp_path / "a.mp4", pictures(30), **MPEG4))
    data = path.read_bytes()
    one, zero, minus, depth = (number.to_bytes(4, "big", signed=True) for number in (1 << 16, 0, -(1 << 16), 1 << 30))
    upright = one + zero + zero + zero + one + zero + zero + zero + depth
    at = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:at] + zero + one + zero + minus + zero + zero + zero + zero + depth + data[at + len(upright) :])
    expected = list(open_frames(path))[20].image
    assert expected.shape == (64, 48, 3)
    np.testing.assert_array_equal(open_frames(path).read([20])[0].image, expected)
