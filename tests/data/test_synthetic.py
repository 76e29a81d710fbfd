from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from solotrack.data import synthetic
from solotrack.data.synthetic import write_synthetic
from solotrack.data.synthetic_objects import CATEGORIES
from solotrack.data.synthetic_stats import video_difficulty

SMALL = {"images": 5, "val_images": 2, "videos": 2, "unlabelled_videos": 1, "frames": 5, "size": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten labelled videos and a few images, wider than high."""
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    write_synthetic(folder, 3, images=30, val_images=1, videos=10, unlabelled_videos=1, frames=14, size=80, aspect=1.2)
    return folder


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---------------------------------------------------------------------------------------------------------------- determinism


def test_seed_decides_every_byte_and_workers_none(tmp_path: Path) -> None:
    assert write_synthetic(tmp_path / "one", 7, **SMALL) is True
    write_synthetic(tmp_path / "two", 7, **SMALL, workers=2)
    write_synthetic(tmp_path / "other", 8, **SMALL)
    one, two, other = (contents(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one if name.endswith(".jpg"))


def test_a_larger_set_begins_with_the_smaller_one(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "small", 7, **SMALL)
    write_synthetic(tmp_path / "large", 7, **(SMALL | {"images": 7, "videos": 3}))
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    jpegs = [name for name in small if name.endswith(".jpg")]
    assert [small[name] for name in jpegs] == [large[name] for name in jpegs]


def test_splits_differ(data: Path) -> None:
    assert (data / "train/000001.jpg").read_bytes() != (data / "val/000001.jpg").read_bytes()
    assert (data / "videos/test/0001/00000.jpg").read_bytes() != (data / "videos/unlabelled/0001/00000.jpg").read_bytes()


# -------------------------------------------------------------------------------------------------------------------- formats


def test_coco_file(data: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(data / "train.json"))
    annotations = coco.dataset["annotations"]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CATEGORIES)
    assert coco.getCatIds() == [1, 2, 3, 4]
    assert [annotation["id"] for annotation in annotations] == list(range(1, len(annotations) + 1))
    assert {annotation["category_id"] for annotation in annotations} == {1, 2, 3, 4}
    counts = [len(coco.getAnnIds(image)) for image in coco.getImgIds()]
    assert len(counts) == 30 and max(counts) <= 8 and np.mean(counts) > 3
    for record in coco.dataset["images"]:
        assert cv2.imread(str(data / "train" / record["file_name"])).shape == (80, 96, 3) == (record["height"], record["width"], 3)
        masks = np.stack([coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds(record["id"]))])
        assert masks.sum(axis=0).max() == 1, "visible masks overlap"
    for annotation in annotations:
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        assert annotation["iscrowd"] == 0
        assert annotation["area"] == mask.sum() >= 20
        box = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
        assert annotation["bbox"] == box


def test_video_file(data: Path) -> None:
    file = load(data / "test.json")
    assert [category["id"] for category in file["categories"]] == [1, 2, 3, 4]
    assert [track["id"] for track in file["annotations"]] == list(range(1, len(file["annotations"]) + 1))
    videos = {video["id"]: video for video in file["videos"]}
    assert sorted(videos) == list(range(1, 11))
    for video in videos.values():
        assert video["length"] == len(video["file_names"]) == 14
        assert all((data / "videos/test" / name).is_file() for name in video["file_names"])
        assert cv2.imread(str(data / "videos/test" / video["file_names"][-1])).shape == (video["height"], video["width"], 3) == (80, 96, 3)
    absent = 0
    for track in file["annotations"]:
        assert (track["height"], track["width"], track["length"], track["iscrowd"]) == (80, 96, 14, 0)
        lists = [track[key] for key in ("segmentations", "bboxes", "areas", "occlusions")]
        assert all(len(values) == videos[track["video_id"]]["length"] for values in lists)
        for segment, box, area, hidden in zip(*lists, strict=True):
            if segment is None:
                assert box is None and area is None and hidden is None
                absent += 1
            else:
                assert area == mask_api.decode(segment).sum() >= 20
                assert box == mask_api.toBbox(segment).tolist()
                assert 0 <= hidden < 1
        assert sum(segment is not None for segment in track["segmentations"]) >= 2
    assert absent > 0


def test_unlabelled_videos_have_no_annotations(data: Path) -> None:
    file = load(data / "unlabelled.json")
    assert "annotations" not in file
    assert len(file["videos"]) == 1
    assert all((data / "videos/unlabelled" / name).is_file() for name in file["videos"][0]["file_names"])


# -------------------------------------------------------------------------------------------------------------------- content


def test_motion_is_harder_than_place_but_not_than_appearance(data: Path) -> None:
    difficulty = load(data / "stats.json")["test"]
    assert 0.6 <= difficulty["nearest_centre_accuracy"] <= 0.75
    assert difficulty["iou_accuracy"] < difficulty["nearest_centre_accuracy"]
    assert min(difficulty["new_objects"], difficulty["re_entries"], difficulty["occlusions"]) > 5
    assert 7 < difficulty["mean_length"] < 14
    # A crude look at the colours inside the ground truth finds nearly every link in spite of exposure, blur and noise.
    assert color_link_accuracy(data) > 0.9


def color_link_accuracy(data: Path) -> float:
    """Share of links where, within the category, the most alike colours in the previous frame are those of the same object."""
    file = load(data / "test.json")
    right, links = 0, 0
    for video in file["videos"]:
        frames = []
        for t, name in enumerate(video["file_names"]):
            lab = cv2.cvtColor(cv2.imread(str(data / "videos/test" / name)), cv2.COLOR_BGR2LAB).astype(float)
            frame = {}
            for track in file["annotations"]:
                if track["video_id"] == video["id"] and track["segmentations"][t]:
                    pixels = lab[mask_api.decode(track["segmentations"][t]).astype(bool)]
                    frame[track["id"]] = (track["category_id"], np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]))
            frames.append(frame)
        for before, after in pairwise(frames):
            for identity in before.keys() & after.keys():
                category, color = after[identity]
                rivals = {other: np.linalg.norm(seen - color) for other, (kind, seen) in before.items() if kind == category}
                right += min(rivals, key=rivals.get) == identity
                links += 1
    return right / links


def test_slow_motion_is_easy(tmp_path: Path) -> None:
    parameters = {"images": 0, "val_images": 0, "videos": 4, "unlabelled_videos": 0, "frames": 8, "size": 64}
    write_synthetic(tmp_path / "slow", 0, **parameters, speed=0.05)
    assert load(tmp_path / "slow/stats.json")["test"]["nearest_centre_accuracy"] > 0.97
    assert not (tmp_path / "slow/train.json").exists()


@pytest.mark.parametrize("knob", ["shift", "light"])
def test_the_look_of_videos_changes_and_nothing_else(tmp_path: Path, knob: str) -> None:
    parameters = {"images": 1, "val_images": 0, "videos": 1, "unlabelled_videos": 1, "frames": 3, "size": 64}
    for name, value in (("none", 0.0), ("full", 1.0)):
        write_synthetic(tmp_path / name, 0, **parameters, **{knob: value})
    none, full = contents(tmp_path / "none"), contents(tmp_path / "full")
    assert none["train/000001.jpg"] == full["train/000001.jpg"]
    assert none["videos/test/0001/00000.jpg"] != full["videos/test/0001/00000.jpg"]
    assert none["videos/unlabelled/0001/00000.jpg"] != full["videos/unlabelled/0001/00000.jpg"]
    assert none["test.json"] == full["test.json"]


def test_data_made_before_there_was_light_are_kept(tmp_path: Path) -> None:
    parameters = {"images": 1, "val_images": 0, "videos": 0, "unlabelled_videos": 0, "frames": 2, "size": 64}
    write_synthetic(tmp_path / "data", 0, **parameters)
    stamp = load(tmp_path / "data/synthetic.json")
    del stamp["light"]
    (tmp_path / "data/synthetic.json").write_text(json.dumps(stamp))
    assert not write_synthetic(tmp_path / "data", 0, **parameters)
    with pytest.raises(FileExistsError, match=r"light 0\.0 -> 0\.5"):
        write_synthetic(tmp_path / "data", 0, **parameters, light=0.5)


# ------------------------------------------------------------------------------------------------------------------ difficulty


def track(identity: int, category: int, boxes: list[tuple[int, int, int, int] | None], video: int = 1) -> dict:
    """A track of (x, y, w, h) rectangles in a 20 x 60 video."""
    segments = []
    for box in boxes:
        mask = np.zeros((20, 60), np.uint8, order="F")
        if box:
            x, y, w, h = box
            mask[y : y + h, x : x + w] = 1
        segments.append(mask_api.encode(mask) if box else None)
    return {"id": identity, "video_id": video, "category_id": category, "segmentations": segments}


def test_difficulty_by_hand() -> None:
    swap = [
        track(1, 1, [(0, 0, 6, 6), (22, 0, 6, 6), (24, 0, 6, 6)]),
        track(2, 1, [(20, 0, 6, 6), (2, 0, 6, 6), None]),  # 1 and 2 change places after the first frame
        track(3, 2, [None, (22, 10, 6, 6), (28, 10, 6, 6)]),  # another category, new, and too far for IoU
        track(4, 3, [(40, 0, 6, 6), None, (40, 0, 6, 6)]),
    ]
    swap[0]["occlusions"] = [0.0, 0.25, 0.6]
    result = video_difficulty([*swap, track(5, 1, [(0, 0, 6, 6)] * 3, video=2)])
    assert result == {
        "tracks": 5,
        "links": 6,  # 1 twice, 2 once, 3 once, and 5 twice in its own video
        "nearest_centre_accuracy": round(4 / 6, 4),  # wrong: 1 and 2 at first
        "iou_accuracy": round(3 / 6, 4),  # 3 is missed as well
        "new_objects": 1,
        "re_entries": 1,
        "occlusions": 2,
        "mean_length": round((3 + 2 + 2 + 2 + 3) / 5, 2),
    }


def test_difficulty_of_nothing() -> None:
    assert video_difficulty([])["links"] == 0


# --------------------------------------------------------------------------------------------------------------- whole or not at all


def test_finished_data_are_left_alone(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", 7, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert write_synthetic(tmp_path / "data", 7, **SMALL, workers=2) is False
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}


def test_other_parameters_need_overwrite(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "data", 7, **SMALL)
    with pytest.raises(FileExistsError, match=r"seed 7 -> 8"):
        write_synthetic(tmp_path / "data", 8, **SMALL)
    assert write_synthetic(tmp_path / "data", 8, **SMALL, overwrite=True) is True
    write_synthetic(tmp_path / "new", 8, **SMALL)
    assert contents(tmp_path / "data") == contents(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "new"]


def test_other_peoples_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no synthetic data"):
        write_synthetic(tmp_path / "data", 7, **SMALL, overwrite=True)
    assert contents(tmp_path / "data") == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("failing", ["_write_jpeg", "_write_annotations"])
def test_interrupted_run_leaves_nothing_and_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    calls = 0
    original = getattr(synthetic, failing)

    def interrupt(*args: object) -> None:
        nonlocal calls
        calls += 1
        if failing == "_write_annotations" or calls == 4:
            raise KeyboardInterrupt
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, failing, interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_synthetic(tmp_path / "data", 7, **SMALL)
    assert list(tmp_path.iterdir()) == []
    assert write_synthetic(tmp_path / "data", 7, **SMALL) is True
    write_synthetic(tmp_path / "reference", 7, **SMALL)
    assert contents(tmp_path / "data") == contents(tmp_path / "reference")


def test_remains_of_a_killed_run_do_not_matter(tmp_path: Path) -> None:
    # In a container a process often has the number of the one before it.
    remains = tmp_path / f"data.partial-{socket.gethostname()}-{os.getpid()}" / "train"
    remains.mkdir(parents=True)
    (remains / "half.jpg").write_bytes(b"half")
    assert write_synthetic(tmp_path / "data", 7, **SMALL) is True
    assert "train/half.jpg" not in contents(tmp_path / "data")


def test_interrupted_overwrite_keeps_the_old_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_synthetic(tmp_path / "data", 7, **SMALL)
    before = contents(tmp_path / "data")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_write_annotations", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "data", 8, **SMALL, overwrite=True)
    assert contents(tmp_path / "data") == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 1}, "frames must be 2 or more; got 1"),
        ({"size": 10}, "size must be from 48 to 1024; got 10"),
        ({"images": -1}, "images must be 0 or more; got -1"),
        ({"speed": 0}, "speed must be from 0.05 to 3; got 0"),
        ({"shift": float("nan")}, "shift must be from 0 to 2; got nan"),
        ({"aspect": 5}, "aspect must be from 0.5 to 2; got 5"),
        ({"workers": 0}, "workers must be 1 or more; got 0"),
        ({"images": 0, "val_images": 0, "videos": 0, "unlabelled_videos": 0}, "nothing to write"),
    ],
)
def test_wrong_arguments(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_synthetic(tmp_path / "data", 0, **(SMALL | wrong))
    with pytest.raises(ValueError, match="seed must be 0 or more; got -1"):
        write_synthetic(tmp_path / "data", -1, **SMALL)
    assert list(tmp_path.iterdir()) == []
