"""Frames of every kind of source: order, content, errors and threads."""

from __future__ import annotations

import gc
import threading
import time

import av
import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from solotrack.data.frames import Camera, FrameError, FrameSource, natural_key, open_frames, read_frame_image
from solotrack.data.prefetch import prefetch


def random_image(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_pngs(folder, count: int, name: str = "f{}.png") -> list[np.ndarray]:
    folder.mkdir(exist_ok=True)
    images = [random_image(i) for i in range(count)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(i))
    return images


def write_video(path, count: int, width: int = 64, height: int = 48, fps: int = 12) -> list[np.ndarray]:
    """A lossless video whose frame i has the grey level 10 + 5 i."""
    images = [np.full((height, width, 3), 10 + 5 * i, np.uint8) for i in range(count)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return images


def decode_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("solotrack-decode")]


class SlowFiles(FrameSource):
    """Frames whose decoding takes longer the earlier they come, so that threads finish in another order."""

    parallel = True

    def __init__(self, count: int, fail_at: int | None = None) -> None:
        super().__init__("RGB", 1, None, count, None)
        self.count, self.fail_at, self.started = count, fail_at, []

    def _read_jobs(self):
        for i in range(self.count):
            yield str(i), lambda i=i: self._read(i)

    def _read(self, i: int) -> np.ndarray:
        self.started.append(i)
        time.sleep(0.004 * (3 - i % 4))
        if i == self.fail_at:
            raise FrameError(f"frame {i} is broken")
        return np.full((2, 2, 3), i, np.uint8)


class SlowStream(SlowFiles):
    parallel = False


def test_natural_order():
    names = ["f10.jpg", "F2.jpg", "f1.jpg", "a100b2.jpg", "a100b10.jpg", "7.jpg", "x.jpg"]
    assert sorted(names, key=natural_key) == ["7.jpg", "a100b2.jpg", "a100b10.jpg", "f1.jpg", "F2.jpg", "f10.jpg", "x.jpg"]
    assert sorted(["walk2", "walk10", "Walk", "walk", "w"], key=natural_key) == ["w", "Walk", "walk", "walk2", "walk10"]


@pytest.mark.parametrize("kind", ["folder", "pattern", "list", "dict"])
def test_image_files(tmp_path, kind):
    images = write_pngs(tmp_path / "v", 12)
    (tmp_path / "v" / "notes.txt").write_text("not a frame")
    (tmp_path / "v" / "._f0.png").write_bytes(b"a side file of another system")
    paths = [tmp_path / "v" / f"f{i}.png" for i in range(12)]
    source = {
        "folder": tmp_path / "v",
        "pattern": str(tmp_path / "v" / "f*.png"),
        "list": paths,
        "dict": {"video_id": 1, "file_names": [str(p) for p in paths]},
    }[kind]
    frames = open_frames(source)
    assert frames.length == 12 and frames.fps is None
    got = list(frames)
    assert [f.index for f in got] == list(range(12))
    assert [f.name for f in got] == [str(p) for p in paths]
    for frame, image in zip(got, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    assert len(list(frames)) == 12, "a source can be read again"


def test_single_image_and_bgr(tmp_path):
    (image,) = write_pngs(tmp_path / "v", 1)
    (frame,) = open_frames(tmp_path / "v" / "f0.png", "BGR")
    np.testing.assert_array_equal(frame.image, image[..., ::-1])


def test_every_and_max_frames(tmp_path):
    images = write_pngs(tmp_path / "v", 10)
    source = open_frames(tmp_path / "v", every=3)
    assert source.length == 4
    assert [f.name[-6:-4] for f in source] == ["f0", "f3", "f6", "f9"]
    assert [f.index for f in source] == [0, 1, 2, 3]
    source = open_frames(tmp_path / "v", every=3, max_frames=2)
    assert source.length == 2 and [f.name[-6:-4] for f in source] == ["f0", "f3"]
    reads = []
    source = open_frames((reads.append(i) or im for i, im in enumerate(images)), every=2, max_frames=3)
    assert len(list(source)) == 3
    assert len(reads) == 5, "nothing is read beyond the last frame that is wanted"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_exif_orientation_is_detectron2s(tmp_path, orientation, image_format):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(random_image(0)).save(tmp_path / "a.jpg", exif=exif)
    got = read_frame_image(tmp_path / "a.jpg", image_format)
    np.testing.assert_array_equal(got, read_image(str(tmp_path / "a.jpg"), image_format))
    assert got.shape[:2] == ((24, 32) if orientation < 5 else (32, 24))
    assert got.flags.c_contiguous


def test_unusual_pixels(tmp_path):
    rgb = random_image(3)
    grey = rgb[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([rgb, grey])).save(tmp_path / "alpha.png")
    deep = grey.astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "deep.tiff"), deep)
    cv2.imwrite(str(tmp_path / "deep_rgb.png"), rgb[..., ::-1].astype(np.uint16) * 257)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(rgb).quantize(16).save(tmp_path / "palette.png")
    three = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_frame_image(tmp_path / "grey.png"), three)
    np.testing.assert_array_equal(read_frame_image(tmp_path / "alpha.png"), rgb)
    np.testing.assert_array_equal(read_frame_image(tmp_path / "deep.png"), three)
    np.testing.assert_array_equal(read_frame_image(tmp_path / "deep.tiff"), three)
    np.testing.assert_array_equal(read_frame_image(tmp_path / "deep_rgb.png"), rgb)
    assert read_frame_image(tmp_path / "palette.png").shape == rgb.shape
    with pytest.raises(FrameError, match=r"float\.tiff.*8 or 16 bits"):
        read_frame_image(tmp_path / "float.tiff")


def test_16_bit_images_of_few_grey_levels_are_warned_of_once_a_folder(tmp_path, caplog):
    image = np.full((4, 5), 4095, np.uint16)
    for name, largest in (("a.png", 4095), ("b.png", 4000), ("c.png", 4095)):  # as the brightest spot of a folder's images differs
        cv2.imwrite(str(tmp_path / name), np.minimum(image, largest))
        assert (read_frame_image(tmp_path / name) == round(largest / 257)).all()
    assert [record.message.count("largest value 4095 of 65535") for record in caplog.records] == [1]
    cv2.imwrite(str(tmp_path / "black.png"), 0 * image)
    cv2.imwrite(str(tmp_path / "bright.png"), 10 * image)
    read_frame_image(tmp_path / "black.png"), read_frame_image(tmp_path / "bright.png")
    assert len(caplog.records) == 1


def test_frames_of_different_size(tmp_path):
    sizes = [(24, 32), (16, 16), (40, 20)]
    for i, size in enumerate(sizes):
        Image.fromarray(random_image(i, *size)).save(tmp_path / f"{i}.png")
    assert [f.image.shape[:2] for f in open_frames(tmp_path)] == sizes


def test_broken_images_are_named(tmp_path):
    write_pngs(tmp_path / "v", 3)
    Image.fromarray(random_image(5, 200, 200)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "v" / "f1.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "v" / "f2.jpg").write_bytes(b"no image at all")
    with pytest.raises(FrameError, match=r"f1\.jpg.*extract it again"):
        read_frame_image(tmp_path / "v" / "f1.jpg")
    with pytest.raises(FrameError, match=r"f2\.jpg.*extract it again"):
        read_frame_image(tmp_path / "v" / "f2.jpg")
    with pytest.raises(FrameError, match=r"gone\.jpg does not exist"):
        read_frame_image(tmp_path / "gone.jpg")
    frames = prefetch(open_frames([tmp_path / "v" / name for name in ("f0.png", "f1.png", "f1.jpg", "f2.png")]), 3, 3)
    assert [next(frames).index, next(frames).index] == [0, 1]
    with pytest.raises(FrameError, match=r"f1\.jpg"):
        next(frames)
    assert not decode_threads()


def test_wrong_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "not.mp4").write_bytes(b"this is no video")
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for source, text in [
        (tmp_path / "empty", "holds no images"),
        (tmp_path / "missing", "no file, folder or pattern"),
        (str(tmp_path / "*.png"), "No file matches"),
        (tmp_path / "not.mp4", r"not\.mp4 cannot be opened"),
        (tmp_path / "sound.wav", "no picture"),
        ("camera:front", "camera:0"),
        ("camera:99", "camera 99 cannot be opened"),
        ([], "empty"),
        (np.zeros((0, 4, 4, 3), np.uint8), "empty"),
        (7, "holds no frames"),
        ({"video_id": 1}, "no file_names"),
    ]:
        with pytest.raises(FrameError, match=text):
            open_frames(source)
    with pytest.raises(FrameError, match=r"Frame 1 .*float64 array of shape \(4, 4, 3\)"):
        list(open_frames([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3))]))
    with pytest.raises(ValueError, match="image_format"):
        open_frames([np.zeros((4, 4, 3), np.uint8)], "GRB")
    with pytest.raises(ValueError, match="every"):
        open_frames([np.zeros((4, 4, 3), np.uint8)], every=0)


def test_arrays_and_generators():
    images = [random_image(i) for i in range(5)]
    source = open_frames(images, "BGR")
    assert source.length == 5
    for frame, image in zip(source, images, strict=True):
        np.testing.assert_array_equal(frame.image, image[..., ::-1])
    source = open_frames(iter(images))
    assert source.length is None
    assert len(list(source)) == 5
    assert open_frames(source) is source
    with pytest.raises(ValueError, match="open already"):
        open_frames(source, "BGR")


@pytest.mark.parametrize("workers", [0, 2])
def test_video_file(tmp_path, workers):
    images = write_video(tmp_path / "a.mkv", 9)
    source = open_frames(tmp_path / "a.mkv")
    assert source.fps == 12
    got = list(prefetch(source, workers, 2))
    assert [f.index for f in got] == list(range(9))
    assert got[4].name == f"{tmp_path / 'a.mkv'}#4"
    for frame, image in zip(got, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    thinned = open_frames(tmp_path / "a.mkv", every=4)
    assert thinned.fps == 3
    assert [int(f.image[0, 0, 0]) for f in thinned] == [10, 30, 50]
    assert [f.name.rpartition("#")[2] for f in thinned] == ["0", "4", "8"]


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_camera(tmp_path, image_format):
    """OpenCV reads a recording through the same calls as a camera."""
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for _ in range(5):
            image = np.full((48, 64, 3), (200, 30, 60), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    source = Camera(str(tmp_path / "a.avi"), image_format, every=2)
    assert source.fps == 4 and source.length is None
    got = list(prefetch(source, 1, 2))
    assert [f.index for f in got] == [0, 1, 2] and got[1].name.endswith("#2")
    expected = np.array([200, 30, 60] if image_format == "RGB" else [60, 30, 200])
    assert np.abs(got[0].image.reshape(-1, 3).mean(axis=0) - expected).max() < 6


def test_one_frame_video(tmp_path):
    write_video(tmp_path / "a.mkv", 1)
    assert len(list(open_frames(tmp_path / "a.mkv"))) == 1


def test_truncated_video_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", 5)  # an mp4's index is at its end
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(FrameError, match=r"cut\.mp4 .*cut short"):
        open_frames(tmp_path / "cut.mp4")
    write_video(tmp_path / "a.mkv", 5)
    data = (tmp_path / "a.mkv").read_bytes()
    start = data.index(b"\x1f\x43\xb6\x75")  # the first cluster of frames
    (tmp_path / "header.mkv").write_bytes(data[:start])
    with pytest.raises(FrameError, match=r"header\.mkv .*cut short"):
        list(open_frames(tmp_path / "header.mkv"))


def test_corrupt_packet_is_an_error(tmp_path):
    write_video(tmp_path / "a.avi", 6)
    data = bytearray((tmp_path / "a.avi").read_bytes())
    at = -1
    for _ in range(4):  # to the fourth frame's packet
        at = data.index(b"00dc", at + 1)
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    data[at + 8 : at + 8 + size] = b"\xff" * size
    (tmp_path / "bad.avi").write_bytes(data)
    got = []
    with pytest.raises(FrameError, match=r"bad\.avi cannot be decoded around frame"):
        for frame in open_frames(tmp_path / "bad.avi"):
            got.append(frame.index)
    assert got == [0, 1, 2][: len(got)]  # the decoder's own threads may see the fault some frames early


def test_video_is_turned_upright(tmp_path):
    """A video with a display matrix of a quarter turn is shown as players show it: the recorded top edge comes to lie on the right."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:8] = 255
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    one, depth = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    zero, minus = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True)
    upright = b"".join([one, zero, zero, zero, one, zero, zero, zero, depth])
    turned = b"".join([zero, one, zero, minus, zero, zero, zero, zero, depth])  # 90 degrees clockwise
    track = data.index(b"tkhd")
    at = data.index(upright, track)
    path.write_bytes(data[:at] + turned + data[at + len(turned) :])
    first = next(iter(open_frames(path)))
    assert first.image.shape == (64, 48, 3)
    assert first.image[:, -6:].mean() > 200 and first.image[:, :36].mean() < 50


@pytest.mark.parametrize("kind", [SlowFiles, SlowStream])
@pytest.mark.parametrize("workers", [0, 1, 7])
@pytest.mark.parametrize("depth", [1, 5])
def test_prefetch_keeps_the_order(kind, workers, depth):
    source = kind(17)
    got = list(prefetch(source, workers, depth, transform=lambda frame: (frame.index, int(frame.image[0, 0, 0]))))
    assert got == [(i, i) for i in range(17)]
    assert not decode_threads()


@pytest.mark.parametrize("kind", [SlowFiles, SlowStream])
def test_prefetch_depth_is_bounded(kind):
    source = kind(60)
    frames = prefetch(source, 4, 6)
    for taken in range(1, 4):
        next(frames)
        time.sleep(0.1)
        assert len(source.started) <= taken + 6
    assert len(source.started) >= 3 + 4, "frames are decoded ahead"
    frames.close()


@pytest.mark.parametrize("kind", [SlowFiles, SlowStream])
@pytest.mark.parametrize("workers", [0, 3])
def test_error_comes_at_its_frame(kind, workers):
    frames = prefetch(kind(10, fail_at=5), workers, 4)
    assert [next(frames).index for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(FrameError, match="frame 5 is broken"):
        next(frames)
    assert not decode_threads()


@pytest.mark.parametrize("kind", [SlowFiles, SlowStream])
@pytest.mark.parametrize("how", ["close", "drop"])
def test_abandoned_iterator_ends_its_threads(kind, how):
    source = kind(1000)
    frames = prefetch(source, 3, 4)
    next(frames)
    assert decode_threads()
    if how == "close":
        frames.close()
    del frames
    gc.collect()
    assert not decode_threads()
    assert len(source.started) < 20
