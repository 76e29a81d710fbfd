"""Which videos clips come from, and that nothing but lists is read to know it."""

from __future__ import annotations

import builtins
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image

from solotrack.config import ConfigError, load_config
from solotrack.data import ytvis
from solotrack.data.annotation_file import DatasetError, read_annotation_file
from solotrack.data.catalog import register_custom
from solotrack.data.clip_mapper import ClipMapper
from solotrack.data.clip_sets import load_clip_videos
from solotrack.data.frames import FrameError
from tests import tiny
from tests.videos import pictures, write_video


def config(clips: list | tuple = (), videos: list | tuple = (), names: list[str] | None = None, **more: Any) -> CfgNode:
    changes = {
        "DATASETS.CUSTOM.CLIPS": list(clips),
        "DATASETS.CUSTOM.VIDEOS": list(videos),
        "DATASETS.TRAIN_CLIPS": [entry[0] for entry in (*videos, *clips)] if names is None else names,
        "INPUT.CLIPS.MIN_SIZE_TRAIN": [24],
    }
    cfg = load_config("", tiny.words(changes | {f"INPUT.CLIPS.{key}": value for key, value in more.items()}))
    register_custom(cfg)
    return cfg


def write_frames(folder: Path, count: int) -> str:
    folder.mkdir(parents=True)
    for i, image in enumerate(pictures(count, 32, 24)):
        Image.fromarray(image).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes a YouTube-VIS set of videos with 3, 1 and 2 frames; returns its entry of DATASETS.CUSTOM.VIDEOS."""
    counts = {"a": 3, "b": 1, "c": 2}
    for name, count in counts.items():
        write_frames(tmp_path / "frames" / name, count)

    def write(name: str, **more: Any) -> list[str]:
        videos = [
            {"id": i + 1, "height": 24, "width": 32, "length": n, "file_names": [f"{video}/{t}.png" for t in range(n)]}
            for i, (video, n) in enumerate(counts.items())
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"videos": videos} | more))
        return [f"{tmp_path.name}_{name}", str(tmp_path / f"{name}.json"), str(tmp_path / "frames")]

    return write


def test_videos_of_a_json(write_json, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one of a single frame is left out, which is said once."""
    entry = write_json("set")
    with caplog.at_level(logging.INFO, logger="solotrack.data.clip_sets"):
        videos = load_clip_videos(config(videos=[entry]))
    frames = tmp_path / "frames"
    assert videos == [{"source": [str(frames / v / f"{t}.png") for t in range(n)]} for v, n in (("a", 3), ("c", 2))]
    (record,) = caplog.records
    assert "2 videos of" in record.message and f"1 with fewer than 2 frames are left out, the first is {frames / 'b'}" in record.message
    assert [len(v["source"]) for v in load_clip_videos(config(videos=[entry], FRAMES=3))] == [3]
    with pytest.raises(ConfigError, match=rf"None of the 3 videos of DATASETS.TRAIN_CLIPS \({entry[0]}\) has INPUT.CLIPS.FRAMES \(4\)"):
        load_clip_videos(config(videos=[entry], FRAMES=4))


class Poisoned(Mapping):
    """What a json holds; whoever takes its annotations, or all of its values, falls over."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def __getitem__(self, key: str) -> Any:
        assert key != "annotations", "the annotations were opened"
        return self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the path of every file that is opened; the content of a json is poisoned."""
    paths, plain_open = [], builtins.open

    def watch(file: Any, *args: Any, **kwargs: Any) -> Any:
        paths.append(os.fspath(file))
        return plain_open(file, *args, **kwargs)

    def poisoned(json_file: str, required: tuple = ()) -> Poisoned:
        return Poisoned(read_annotation_file(json_file, required))

    monkeypatch.setattr(builtins, "open", watch)
    monkeypatch.setattr(ytvis, "read_annotation_file", poisoned)
    monkeypatch.setattr("solotrack.data.annotation_file.read_annotation_file", poisoned)
    return paths


def test_annotations_are_never_opened(write_json, tmp_path: Path, opened: list[str]) -> None:
    """METHOD 13, T10: a set's annotations may be missing, or anything at all, without any influence on a clip."""
    entries = {
        "without": write_json("without"),
        "broken": write_json("broken", annotations={"no": "list"}),
        "labelled": write_json("labelled", annotations=[{"id": 1, "video_id": 1, "segmentations": "poison"}], categories=[]),
    }
    opened.clear()
    clips = {}
    for name, entry in entries.items():
        cfg = config(videos=[entry], FRAMES=3, MAX_GAP=1)
        (video,) = load_clip_videos(cfg)
        assert video.keys() == {"source"}
        clips[name] = ClipMapper(cfg)(video)
        assert clips[name].keys() == {"frames", "file_names", "height", "width", "video"}
        assert clips[name]["file_names"] == clips["without"]["file_names"] == video["source"]
    frames = {str(tmp_path / "frames" / "a" / f"{t}.png") for t in range(3)}
    assert {path for path in opened if path.startswith(str(tmp_path))} == frames | {entry[1] for entry in entries.values()}


@pytest.mark.parametrize("look", [lambda d: d["annotations"], lambda d: d.get("annotations"), lambda d: [*d.items()], lambda d: {**d}])
def test_the_poison_works(write_json, opened: list[str], look: Callable) -> None:
    data = ytvis.read_annotation_file(write_json("set", annotations=[])[1])
    assert len(data["videos"]) == 3 and len(opened) == 1
    with pytest.raises(AssertionError, match="were opened"):
        look(data)


def test_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder of images and every video file below a folder, in natural order; what is hidden or something else is passed over."""
    root = tmp_path / "clips"
    folders = [write_frames(root / name, count) for name, count in (("v2", 2), ("v10", 3), ("deep/er", 2), ("one", 1), (".hidden", 4))]
    film = write_video(root / "film.mkv", pictures(5))
    write_video(root / "deep" / "Long.AVI", pictures(3))
    write_video(root / "still.mkv", pictures(1))
    (root / "notes.txt").write_text("no video")
    (root / "._film.mkv").write_text("a side file of another system")

    def sources(entry: str, **more: Any) -> list[str]:
        return [video["source"] for video in load_clip_videos(config([[f"{tmp_path.name}_clips", entry]], **more))]

    deep = [str(root / "deep" / "er"), str(root / "deep" / "Long.AVI")]
    expected = [*deep, film, folders[0], folders[1]]
    assert sources(str(root)) == expected
    assert sources(str(root), FRAMES=3) == [deep[1], film, folders[1]]
    assert sources(folders[1]) == [folders[1]]
    assert sources(film) == [film]
    assert sources(str(root / "v1*")) == sources(str(root / "[vo]*0")) == [folders[1]]
    assert sources(str(root / "*.mkv")) == [film]
    assert sources(str(root / "*")) == expected, "a pattern passes over what the folder does"
    write_video(root / "film.rec", pictures(2), format="matroska")
    assert sources(str(root)) == sources(str(root / "*")) == expected
    assert sources(str(root / "*.rec")) == sources(str(root / "film.rec")) == [str(root / "film.rec")], "but for one that it names"
    assert sources(str(root / "**" / "*.AVI")) == [deep[1]]
    (root / "v2" / "again").symlink_to(root)
    assert sources(str(root)) == expected, "a link back is not walked without end"
    monkeypatch.chdir(tmp_path)
    assert sources("clips/film.mkv") == [film]
    (tmp_path / "[x]").mkdir()
    assert sources(write_frames(tmp_path / "[x]" / "v[1]", 2)) == [str(tmp_path / "[x]" / "v[1]")]


def test_sets_are_joined(write_json, tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "more" / "v", 2)
    clips, videos = [f"{tmp_path.name}_more", str(tmp_path / "more")], write_json("set")
    found = load_clip_videos(config([clips], [videos], names=[clips[0], videos[0]]))
    assert [len(video["source"]) for video in found[1:]] == [3, 2] and found[0] == {"source": folder}


def test_nothing_is_decoded(write_json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clips.mkv", pictures(5))

    def fail(*_: Any) -> None:
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr("solotrack.data.frames.read_frame_image", fail)
    monkeypatch.setattr("solotrack.data.video_file.VideoFile._read_jobs", fail)
    monkeypatch.setattr("solotrack.data.video_file._decode", fail)
    monkeypatch.setattr("solotrack.data.video_file.VideoFile._indexed", fail)
    assert len(load_clip_videos(config([[f"{tmp_path.name}_a", str(tmp_path / "clips.mkv")]], [write_json("set")]))) == 3


def test_what_is_wrong_is_told_in_a_sentence(write_json, tmp_path: Path) -> None:
    name, here = f"{tmp_path.name}_clips", str(tmp_path)
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").touch()
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    frames = write_frames(tmp_path / "v", 2)
    entry = write_json("set")
    for cfg, kind, message in (
        (config([[name, f"{here}/gone"]]), DatasetError, "there is no .*/gone; give a video file, a folder"),
        (config([[name, f"{here}/*.mp4"]]), DatasetError, r"neither video files nor folders of frames at .*/\*\.mp4"),
        (config([[name, f"{here}/empty"]]), DatasetError, "are empty: .* at .*/empty"),
        (config([[name, f"{here}/set.json"]]), DatasetError, r"are a json, .*DATASETS\.CUSTOM\.VIDEOS"),
        (config([[name, f"{frames}/*.png"]]), DatasetError, r"single images such as .*\.png; give the folder"),
        (config([[name, f"{here}/broken"]]), FrameError, r"a\.mp4 cannot be opened"),
        (config([[name, f"{here}/sound.wav"]]), FrameError, r"sound\.wav"),
        (config([[entry[0], frames]], [entry]), ConfigError, f"CUSTOM.CLIPS calls a set '{entry[0]}', but another data set has that name"),
        (config(names=["synthetic_unlabeled"]), DatasetError, "Did you mean synthetic_unlabelled.*CLIPS"),
        (config(names=["ytvis_2019_train"]), FileNotFoundError, "ytvis_2019_train is not here"),
        (tiny.config({"DATASETS.TRAIN_CLIPS": ["tiny_train"]}), ConfigError, "has tiny_train, which is a set of images"),
        (
            tiny.config({"DATASETS.TRAIN_CLIPS": ["coco_2017_train"]}),
            ConfigError,
            "TRAIN_CLIPS has coco_2017_train, which is a set of images",
        ),
    ):
        with pytest.raises(kind, match=message):
            load_clip_videos(cfg)
    json_file = tmp_path / "set.json"
    data = json.loads(json_file.read_text())
    data["videos"][1]["file_names"] = []
    json_file.write_text(json.dumps(data))
    with pytest.raises(DatasetError, match="video 2 has no file_names"):
        load_clip_videos(config(videos=[entry]))


def test_a_folder_that_must_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(tmp_path / "clips" / "a", 2), write_frames(tmp_path / "clips" / "b", 2)
    scandir = os.scandir

    def locked(path: str) -> Any:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match="clips/b"):
        load_clip_videos(config([[f"{tmp_path.name}_x", str(tmp_path / "clips")]]))
