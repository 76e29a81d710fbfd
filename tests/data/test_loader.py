"""Loaders as training and tracking get them, from files on the disk."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from solotrack.config import ConfigError, load_config
from solotrack.data.annotation_file import DatasetError
from solotrack.data.catalog import load_dataset, register_custom
from solotrack.data.clip_mapper import ClipMapper
from solotrack.data.clip_sets import load_clip_videos
from solotrack.data.frames import FrameError
from solotrack.data.loader import SeededDataset, build_train_loader, build_video_loader, training_records, training_samples
from solotrack.data.mappers import ImageMapper
from tests.videos import pictures, write_video


@pytest.fixture
def coco(tmp_path: Path):
    """Writes a COCO set of 7 images, 3 of them upright; the last has no annotation."""

    def _write(name: str = "set", names: tuple[str, ...] = ("ant", "bee"), empty_from: int = 6) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        images, annotations = [], []
        for i in range(7):
            height, width = (40, 32) if i % 2 else (32, 40)
            pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f"{i}.png"), pixels)
            images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
            if i < empty_from:
                square = [4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]
                annotations.append({"id": i + 1, "image_id": i, "category_id": 1 + i % 2, "iscrowd": 0, "segmentation": [square]})
        categories = [{"id": i + 1, "name": n} for i, n in enumerate(names)]
        (folder / "set.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return [f"{tmp_path.name}_{name}", str(folder / "set.json"), str(folder)]

    return _write


def config(entries: list[list[str]], *overrides: str) -> CfgNode:
    fixed = {
        "DATASETS.CUSTOM.IMAGES": str(entries),
        "DATASETS.TRAIN": str(tuple(entry[0] for entry in entries)),
        "MODEL.SOLO.NUM_CLASSES": "2",
        "SEED": "7",
        "INPUT.MIN_SIZE_TRAIN": "(24, 32, 40)",
        "SOLVER.IMS_PER_BATCH": "4",
        "DATALOADER.NUM_WORKERS": "0",
    }
    cfg = load_config("", [*chain(*fixed.items()), *overrides])
    register_custom(cfg)
    return cfg


def flatten(batches: list) -> list:
    return [
        (d["image_id"], d["image"].tolist(), d["instances"].gt_masks.tensor.tolist(), d["instances"].gt_ids.tolist())
        + ((d["second_view"]["image"].tolist(),) if "second_view" in d else ())
        for batch in batches
        for d in batch
    ]


def test_same_batches_for_any_number_of_workers_and_after_a_resume(coco):
    entry = coco()
    views = ["MODEL.SOLO_TRACK.EMB.VIEWS", "2"]
    expected = flatten(list(islice(build_train_loader(config([entry], *views)), 6)))
    assert len({tuple(map(str, sample[1:])) for sample in expected}) == 24  # no sample comes twice
    for workers in (1, 2):
        loader = build_train_loader(config([entry], "DATALOADER.NUM_WORKERS", str(workers), *views))
        assert loader.persistent_workers
        assert flatten(list(islice(loader, 6))) == expected
    assert flatten(list(islice(build_train_loader(config([entry], *views), start_iter=4), 2))) == expected[16:]


def test_pasted_instances_are_decided_by_seed_and_position(coco):
    """For any number of workers and after a resume; the donors are the training images."""
    entry = coco()
    plain = flatten(list(islice(build_train_loader(config([entry])), 6)))
    paste = ["INPUT.COPY_PASTE.PROB", "0.7", "INPUT.COPY_PASTE.MAX_INSTANCES", "2"]
    expected = flatten(list(islice(build_train_loader(config([entry], *paste)), 6)))
    images = [sample[0] for sample in expected]
    assert images == [sample[0] for sample in plain] and 8 < sum(a != b for a, b in zip(expected, plain, strict=True)) < 24
    assert any(max(sample[3]) >= 1 for sample in expected), "every image has one instance of its own, number 0"
    loader = build_train_loader(config([entry], "DATALOADER.NUM_WORKERS", "2", *paste))
    assert flatten(list(islice(loader, 6))) == expected
    assert flatten(list(islice(build_train_loader(config([entry], *paste), start_iter=4), 2))) == expected[16:]
    assert loader.dataset.records is loader.dataset.mapper.donors, "one copy in memory"


def test_a_loader_leaves_the_global_random_state_alone(coco):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(build_train_loader(config([coco()]))))
    assert torch.equal(torch.get_rng_state(), before)


def test_aspect_ratio_grouping(coco):
    cfg = config([coco()], "INPUT.MIN_SIZE_TRAIN", "(32,)")
    for batch in islice(build_train_loader(cfg), 6):
        assert len({d["image"].shape for d in batch}) == 1
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    assert any(len({d["image"].shape for d in batch}) == 2 for batch in islice(build_train_loader(cfg), 6))


def test_images_without_annotations(coco):
    entry = coco()
    loader = build_train_loader(config([entry], "DATALOADER.ASPECT_RATIO_GROUPING", "False"))
    assert {d["image_id"] for batch in islice(loader, 6) for d in batch} == set(range(6))
    loader = build_train_loader(
        config([entry], "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "DATALOADER.ASPECT_RATIO_GROUPING", "False")
    )
    samples = [d for batch in islice(loader, 7) for d in batch]
    assert {d["image_id"] for d in samples} == set(range(7))
    assert all(len(d["instances"]) == (d["image_id"] != 6) for d in samples)


def test_no_instances_at_all(coco):
    with pytest.raises(DatasetError, match="FILTER_EMPTY_ANNOTATIONS False"):
        build_train_loader(config([coco(empty_from=0)]))


def test_fewer_images_than_a_batch_and_two_sets(coco):
    cfg = config([coco("a"), coco("b")], "SOLVER.IMS_PER_BATCH", "32")
    batch = next(iter(build_train_loader(cfg)))
    assert len(batch) == 32
    files = {Path(d["file_name"]).parent.name for d in batch}
    assert files == {"a", "b"}


def test_ranks_get_the_pieces_of_one_process_batch(coco, monkeypatch):
    cfg = config([coco()])
    whole = flatten(list(islice(build_train_loader(cfg), 3)))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    pieces = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        pieces.append(list(islice(build_train_loader(cfg), 3)))
    assert flatten([list(chain(*parts)) for parts in zip(*pieces, strict=True)]) == whole
    cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(ConfigError, match=r"IMS_PER_BATCH \(3\) must be a multiple of the number of processes \(2\)"):
        build_train_loader(cfg)


def test_a_negative_seed_is_drawn_once_for_all_processes(coco, monkeypatch):
    cfg = config([coco()], "SEED", "-1")
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 7)
    drawn = flatten([next(iter(build_train_loader(cfg)))])
    cfg.SEED = 7
    assert flatten([next(iter(build_train_loader(cfg)))]) == drawn


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "the only one here is 'TrainingSampler'"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["MODEL.SOLO.NUM_CLASSES", "80"], r"NUM_CLASSES is 80 but .*_set has 2 categories \(ant, bee\); set .* to 2"),
    ],
)
def test_configs_that_cannot_work(coco, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build_train_loader(config([coco()], *overrides))


def test_an_image_that_breaks_is_named(coco):
    entry = coco()
    for file in Path(entry[2]).glob("[2-4].png"):
        file.write_bytes(file.read_bytes()[:200])
    loader = build_train_loader(config([entry], "SOLVER.IMS_PER_BATCH", "6"))
    with pytest.raises(FrameError, match=r"[234]\.png cannot be read"):
        next(iter(loader))


# ---- images and clips


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos: two folders of frames, three files."""
    folder = tmp_path_factory.mktemp("clips")
    for v in range(2):
        (folder / f"v{v}").mkdir()
        for i, image in enumerate(pictures(9, 40, 32)):
            cv2.imwrite(str(folder / f"v{v}" / f"{i}.png"), image)
    for v in range(2, 5):
        write_video(folder / f"v{v}.mkv", pictures(9 + v))
    return folder


def mixed(coco_entry: list[str], clip_folder: Path, *overrides: str) -> CfgNode:
    name = f"{clip_folder.parent.name}_{clip_folder.name}"
    fixed = {
        "DATASETS.CUSTOM.CLIPS": str([[name, str(clip_folder)]]),
        "DATASETS.TRAIN_CLIPS": str([name]),
        "MODEL.SOLO_TRACK.VIDEO.ENABLED": True,
        "SOLVER.CLIPS_PER_BATCH": "2",
        "INPUT.CLIPS.MIN_SIZE_TRAIN": "[20, 24, 28]",
        "INPUT.CLIPS.COLOR": "0.3",
    }
    return config([coco_entry], *chain(*fixed.items()), *overrides)


def flatten_clips(batches: list) -> list:
    return [(d["file_names"], [frame.tolist() for frame in d["frames"]]) for batch in batches for d in batch]


def take(loader, count: int, images: int = 4) -> tuple[list, list]:
    """The next batches' images and clips; a batch has ``images`` images, and these come first."""
    batches = list(islice(loader, count))
    assert all(["image" in d for d in batch] == [slot < images for slot in range(len(batch))] for batch in batches)
    return flatten([batch[:images] for batch in batches]), flatten_clips([batch[images:] for batch in batches])


def test_batches_of_images_and_clips(coco, clip_folder):
    """They are the same for any number of workers and after a resume, and the images those of a run without clips."""
    entry = coco()
    images, clips = take(build_train_loader(mixed(entry, clip_folder)), 8)
    assert images == flatten(list(islice(build_train_loader(config([entry])), 8)))
    without = build_train_loader(mixed(entry, clip_folder, "SOLVER.CLIPS_PER_BATCH", "0", "DATASETS.TRAIN_CLIPS", "['not there']"))
    assert images == take(without, 8)[0] and type(without.dataset) is SeededDataset
    assert len(clips) == 16 and len({str(clip) for clip in clips}) == 16
    videos = [names[0].rpartition("#")[0] or str(Path(names[0]).parent) for names, _ in clips]
    assert all(Counter(videos[5 * e : 5 * e + 5]) == Counter(map(str, clip_folder.iterdir())) for e in range(3)), "each video once an epoch"
    for workers in (1, 2):
        loader = build_train_loader(mixed(entry, clip_folder, "DATALOADER.NUM_WORKERS", str(workers)))
        assert take(loader, 4) == (images[:16], clips[:8])
    assert take(build_train_loader(mixed(entry, clip_folder), start_iter=5), 3) == (images[20:], clips[10:])
    assert take(build_train_loader(mixed(entry, clip_folder, "SEED", "8")), 1)[1] != clips[:2]


def test_clips_do_not_share_their_random_numbers_with_images(coco, clip_folder):
    cfg = mixed(coco(), clip_folder)
    images, clips = build_train_loader(cfg).dataset.parts
    assert images.seed == cfg.SEED != clips.seed
    alike = SeededDataset(load_clip_videos(cfg), ClipMapper(cfg), cfg.SEED)
    assert any(clips[0, position]["file_names"] != alike[0, position]["file_names"] for position in range(9))


def test_ranks_share_images_and_clips(coco, clip_folder, monkeypatch):
    cfg = mixed(coco(), clip_folder)
    whole = take(build_train_loader(cfg), 3)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    images, clips = [], []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        pieces = list(islice(build_train_loader(cfg), 3))
        assert all(len(batch) == 3 for batch in pieces)
        images.append([batch[:2] for batch in pieces])
        clips.append([batch[2:] for batch in pieces])
    assert flatten([a + b for a, b in zip(*images, strict=True)]) == whole[0]
    assert flatten_clips([a + b for a, b in zip(*clips, strict=True)]) == whole[1]
    cfg.SOLVER.CLIPS_PER_BATCH = 3
    with pytest.raises(ConfigError, match=r"SOLVER.CLIPS_PER_BATCH \(3\) must be a multiple of the number of processes \(2\)"):
        build_train_loader(cfg)


def test_fewer_videos_than_clips_in_a_batch(coco, clip_folder, tmp_path):
    write_video(tmp_path / "only.mkv", pictures(30))
    cfg = mixed(coco(), tmp_path / "only.mkv", "SOLVER.CLIPS_PER_BATCH", "6")
    _, clips = take(build_train_loader(cfg), 1)
    assert len(clips) == 6 and len({tuple(names) for names, _ in clips}) > 2


def test_a_clip_that_breaks_is_named(coco, tmp_path):
    (tmp_path / "v").mkdir()
    for i, image in enumerate(pictures(2)):
        cv2.imwrite(str(tmp_path / "v" / f"{i}.jpg"), image)
    (tmp_path / "v" / "1.jpg").write_bytes((tmp_path / "v" / "1.jpg").read_bytes()[:400])
    with pytest.raises(FrameError, match=r"v/1\.jpg cannot be read"):
        next(iter(build_train_loader(mixed(coco(), tmp_path / "v"))))


def test_video_loader(tmp_path, monkeypatch):
    videos = [{"id": i, "height": 4, "width": 4, "length": 1, "file_names": [f"{i}.png"]} for i in range(5)]
    for i in range(5):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "v.json").write_text(json.dumps({"videos": videos}))
    name = f"{tmp_path.name}_videos"
    cfg = load_config("", ["DATASETS.CUSTOM.VIDEOS", str([[name, str(tmp_path / "v.json"), str(tmp_path)]])])
    register_custom(cfg)
    batches = list(build_video_loader(name))
    assert [[v["video_id"] for v in batch] for batch in batches] == [[0], [1], [2], [3], [4]]
    assert batches[0][0]["file_names"] == [str(tmp_path / "0.png")]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares += [v["video_id"] for (v,) in build_video_loader(name)]
    assert shares == [0, 1, 2, 3, 4]
    (tmp_path / "v.json").write_text(json.dumps({"videos": []}))
    with pytest.raises(DatasetError, match=f"{name} is empty"):
        build_video_loader(name)


def test_video_loader_wants_videos(coco):
    entry = coco()
    config([entry])
    with pytest.raises(ConfigError, match="set of images; tracking needs videos"):
        build_video_loader(entry[0])


def test_samples_of_the_training_images(coco):
    """What SeededDataset makes of them all, at the images that were drawn."""
    cfg = config([coco()], "INPUT.AUG.COLOR", "0.3")
    everything = load_dataset(cfg.DATASETS.TRAIN[0])
    dataset = SeededDataset(everything, ImageMapper(cfg), 5)
    drawn = training_records(cfg, 4, 5)
    assert len({index for index, _ in drawn}) == 4 and all(record == everything[index] for index, record in drawn)
    assert len(training_records(cfg, 1000, 5)) == len(everything)
    for _ in range(2):
        samples = list(training_samples(cfg, drawn, 5))
        for (index, _), sample in zip(drawn, samples, strict=True):
            expected = dataset[index, index]
            assert torch.equal(sample["image"], expected["image"]) and sample["file_name"] == expected["file_name"]
            assert torch.equal(sample["instances"].gt_masks.tensor, expected["instances"].gt_masks.tensor)
    assert [index for index, _ in training_records(cfg, 4, 6)] != [index for index, _ in drawn]
