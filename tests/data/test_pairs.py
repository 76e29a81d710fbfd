"""Pairs of labelled frames: which are drawn, that both are transformed alike, and that tracks keep their numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch

from solotrack.config import ConfigError
from solotrack.data.annotation_file import DatasetError
from solotrack.data.loader import build_train_loader
from solotrack.data.mappers import ImageMapper
from solotrack.data.pairs import PairMapper, load_pairs
from tests import tiny


@pytest.fixture
def seeded() -> Callable[[int], None]:
    """Frames and transforms are drawn from NumPy's global state."""
    before = np.random.get_state()  # noqa: NPY002
    yield np.random.seed
    np.random.set_state(before)  # noqa: NPY002


def config(changes: dict | None = None):
    return tiny.config(tiny.masktrack() | (changes or {}))


def test_records_are_the_frames_of_each_video() -> None:
    records, mapper = load_pairs(config())
    frames = list(mapper.frames)
    assert [r["index"] for r in records] == list(range(len(frames)))
    for record in records:
        video = frames[record["first"] : record["first"] + record["count"]]
        assert {f["video_id"] for f in video} == {frames[record["index"]]["video_id"]}
        assert record["first"] <= record["index"] < record["first"] + record["count"]
        assert (record["height"], record["width"]) == (tiny.SIZE, tiny.SIZE)


def test_the_reference_is_any_other_frame_of_the_video(seeded) -> None:
    records, mapper = load_pairs(config())
    names = [frame["file_name"] for frame in mapper.frames]
    seeded(0)
    for record in records:
        drawn = set()
        for _ in range(30):
            sample = mapper(record)
            assert sample["file_name"] == names[record["index"]]
            drawn.add(sample["reference"]["file_name"])
        video = set(names[record["first"] : record["first"] + record["count"]])
        assert drawn == video - {names[record["index"]]}


def test_tracks_and_masks() -> None:
    """Identities are the annotations' ids, in both frames; boxes, masks and classes are the ImageMapper's."""
    cfg = config({"INPUT.RANDOM_FLIP": "none"})
    records, mapper = load_pairs(cfg)
    plain = ImageMapper(cfg, is_train=True)
    shared = 0
    for record in records:
        sample = mapper(record)
        by_name = {frame["file_name"]: frame for frame in mapper.frames}
        for part in (sample, sample["reference"]):
            frame = by_name[part["file_name"]]
            expected = plain(frame)
            assert torch.equal(part["image"], expected["image"])
            instances = part["instances"]
            assert instances.gt_ids.tolist() == [frame["annotations"][i]["id"] for i in expected["instances"].gt_ids.tolist()]
            assert torch.equal(instances.gt_masks.tensor, expected["instances"].gt_masks.tensor)
            assert torch.equal(instances.gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
        shared += len(set(sample["instances"].gt_ids.tolist()) & set(sample["reference"]["instances"].gt_ids.tolist()))
    assert shared > len(records)


def test_both_frames_are_transformed_alike(seeded) -> None:
    """A pair of one and the same frame stays equal, whatever the augmentation."""
    cfg = config({"INPUT.MIN_SIZE_TRAIN": [48, 64, 80], "INPUT.AUG.COLOR": 0.5, "INPUT.AUG.SCALE_RANGE": [0.8, 1.2]})
    records, mapper = load_pairs(cfg)
    frame = mapper.frames[records[0]["index"]]
    twins = PairMapper([frame, frame], mapper.mapper)
    seeded(3)
    seen = set()
    for _ in range(8):
        sample = twins({"index": 0, "first": 0, "count": 2})
        assert torch.equal(sample["image"], sample["reference"]["image"])
        assert torch.equal(sample["instances"].gt_masks.tensor, sample["reference"]["instances"].gt_masks.tensor)
        seen.add((sample["image"].shape, int(sample["image"].sum())))
    assert len(seen) > 4, "and differs from pair to pair"


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_do_not_depend_on_where_they_begin(workers: int) -> None:
    cfg = config({"DATALOADER.NUM_WORKERS": workers, "SOLVER.IMS_PER_BATCH": 3})
    whole = list(islice(build_train_loader(cfg), 5))
    late = list(islice(build_train_loader(cfg, start_iter=3), 2))
    for a, b in zip(whole[3:], late, strict=True):
        assert [x["file_name"] for x in a] == [x["file_name"] for x in b]
        assert [x["reference"]["file_name"] for x in a] == [x["reference"]["file_name"] for x in b]
        assert all(torch.equal(x["reference"]["image"], y["reference"]["image"]) for x, y in zip(a, b, strict=True))


def _register(tmp_path, change) -> dict:
    """Config changes that name the tiny test videos after ``change`` of their json."""
    data = json.loads((tiny.data_root() / "test.json").read_text())
    change(data)
    (tmp_path / "set.json").write_text(json.dumps(data))
    name = f"pairs_{tmp_path.name}"
    return {"DATASETS.CUSTOM.VIDEOS": [[name, str(tmp_path / "set.json"), str(tiny.data_root() / "videos/test")]], "DATASETS.TRAIN": [name]}


def _one_frame(data: dict, videos: list[int]) -> None:
    for annotation in data["annotations"]:
        if annotation["video_id"] in videos:
            annotation["segmentations"][1:] = [None] * (tiny.FRAMES - 1)


def test_videos_with_a_single_labelled_frame_have_no_pairs(tmp_path) -> None:
    records, mapper = load_pairs(config(_register(tmp_path, lambda data: _one_frame(data, [1]))))
    assert {mapper.frames[r["index"]]["video_id"] for r in records} == {2}


def test_no_pairs_at_all(tmp_path) -> None:
    cfg = config(_register(tmp_path, lambda data: _one_frame(data, [1, 2])))
    with pytest.raises(DatasetError, match=r"No video of pairs_.* has two frames that show an object"):
        load_pairs(cfg)


def test_videos_are_for_this_model_alone() -> None:
    with pytest.raises(ConfigError, match=r"tiny_test, which is a set of videos; training reads labelled images"):
        build_train_loader(tiny.config({"DATASETS.TRAIN": ["tiny_test"]}))
    with pytest.raises(ConfigError, match=r"tiny_train, which is a set of images; MaskTrackRCNN learns from labelled videos"):
        build_train_loader(config({"DATASETS.TRAIN": ["tiny_train"]}))
    with pytest.raises(DatasetError, match=r"unlabelled\.json has no list 'annotations'"):
        build_train_loader(config({"DATASETS.TRAIN": ["tiny_unlabelled"]}))
    with pytest.raises(ConfigError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES is 5 but tiny_test has 4 categories .*; set MODEL\.ROI_HEADS"):
        build_train_loader(config({"MODEL.ROI_HEADS.NUM_CLASSES": 5}))
