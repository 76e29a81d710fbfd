from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.evaluation import COCOEvaluator

from solotrack.config import ConfigError, load_config
from solotrack.data.annotation_file import DatasetError
from solotrack.data.catalog import (
    check_num_classes,
    check_test_categories,
    class_to_dataset_id,
    dataset_metadata,
    load_dataset,
    register_all,
    register_custom,
)

COCO_THINGS = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
YTVIS_NAMES = ("person", "giant_panda", "sedan", "motorbike", "mouse", "tennis_racket")


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """An empty folder of data sets; the names point into it during the test."""
    register_all(str(tmp_path))
    yield tmp_path
    register_all(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def write_images(json_file: Path, folder: Path, labels: list[list[int]], categories: list[dict]) -> None:
    """One image for each list of category ids."""
    folder.mkdir(parents=True, exist_ok=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 12} for i in range(len(labels))]
    for image in images:
        cv2.imwrite(str(folder / image["file_name"]), np.zeros((10, 12, 3), np.uint8))
    pairs = [(i, label) for i, found in enumerate(labels) for label in found]
    annotations = [
        {"id": n + 1, "image_id": i, "category_id": label, "iscrowd": 0, "bbox": [2, 2, 6, 6], "area": 36, "segmentation": SQUARE}
        for n, (i, label) in enumerate(pairs)
    ]
    json_file.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories}))


def write_videos(json_file: Path, folder: Path, names: tuple[str, ...] | None = YTVIS_NAMES, first_id: int = 1) -> None:
    (folder / "v").mkdir(parents=True, exist_ok=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "v/0.jpg").touch()
    content = {"videos": [{"id": 1, "height": 4, "width": 4, "length": 1, "file_names": ["v/0.jpg"]}]}
    if names is not None:
        content["categories"] = [{"id": first_id + i, "name": name} for i, name in enumerate(names)]
    json_file.write_text(json.dumps(content))


def config(*overrides: str, images: list | tuple = (), videos: list | tuple = ()) -> CfgNode:
    custom = ["DATASETS.CUSTOM.IMAGES", str(list(images)), "DATASETS.CUSTOM.VIDEOS", str(list(videos))]
    cfg = load_config("", [*custom, *overrides])
    register_custom(cfg)
    return cfg


def test_registration_does_not_touch_the_disk():
    register_all("/nowhere/at/all")
    try:
        expected = {f"coco_2017_{split}_{subset}" for split in ("train", "val") for subset in ("name20", "sem19")}
        expected |= {f"ytvis_{year}_{split}" for year in (2019, 2021) for split in ("train", "valid", "test")}
        expected |= {f"synthetic_{split}" for split in ("train", "val", "test", "unlabelled")}
        assert expected <= set(DatasetCatalog)
        with pytest.raises(
            FileNotFoundError, match=r"ytvis_2019_valid is not here: .*/valid\.json or .*instances_val_sub\.json.*DETECTRON2_DATASETS"
        ):
            load_dataset("ytvis_2019_valid")
    finally:
        register_all(os.environ.get("DETECTRON2_DATASETS", "datasets"))


@pytest.mark.parametrize(("subset", "count", "mouse"), [("name20", 20, 1), ("sem19", 19, 0)])
def test_coco_subsets(root, subset, count, mouse):
    """Person, car, bicycle (in neither subset) and mouse (in name20 only)."""
    labels = [[3, 1], [2], [74, 1, 2]]
    write_images(root / "coco/annotations/instances_train2017.json", root / "coco/train2017", labels, COCO_THINGS)
    name = f"coco_2017_train_{subset}"
    metadata = dataset_metadata(name)
    assert len(metadata.thing_classes) == len(metadata.thing_dataset_id_to_contiguous_id) == count
    assert sorted(metadata.thing_dataset_id_to_contiguous_id.values()) == list(range(count))
    assert metadata.evaluator_type == "coco" and metadata.image_root == str(root / "coco/train2017")
    records = load_dataset(name)
    names = [[metadata.thing_classes[a["category_id"]] for a in record["annotations"]] for record in records]
    assert names == [["car", "person"], [], [*["mouse"] * mouse, "person"]]


def test_coco_subsets_can_be_scored(root):
    """Detectron2's evaluator must score 20 categories and not 80; perfect predictions get AP 100."""
    import torch
    from detectron2.structures import Boxes, Instances

    write_images(root / "coco/annotations/instances_val2017.json", root / "coco/val2017", [[3, 2], [1]], COCO_THINGS)
    evaluator = COCOEvaluator("coco_2017_val_name20", ("segm",), False, str(root / "out"))
    evaluator.reset()
    classes = {0: "car", 1: "person"}
    for record in load_dataset("coco_2017_val_name20"):
        instances = Instances((10, 12))
        instances.pred_masks = torch.zeros(1, 10, 12, dtype=torch.bool)
        instances.pred_masks[0, 2:8, 2:8] = True
        instances.pred_boxes = Boxes(torch.tensor([[2.0, 2, 8, 8]]))
        instances.scores = torch.ones(1)
        label = dataset_metadata("coco_2017_val_name20").thing_classes.index(classes[record["image_id"]])
        instances.pred_classes = torch.tensor([label])
        evaluator.process([record], [{"instances": instances}])
    results = evaluator.evaluate()["segm"]
    assert results["AP"] == pytest.approx(100)
    assert sum(key.startswith("AP-") for key in results) == 20


@pytest.mark.parametrize("year", [2019, 2021])
@pytest.mark.parametrize(("split", "other"), [("train", "train"), ("valid", "val"), ("test", "test")])
def test_both_ytvis_layouts(root, year, split, other):
    base = root / f"ytvis_{year}"
    name = f"ytvis_{year}_{split}"
    write_videos(base / "annotations" / f"instances_{other}_sub.json", base / other / "JPEGImages")
    assert load_dataset(name)[0]["file_names"] == [str(base / other / "JPEGImages/v/0.jpg")]
    register_all(str(root / "moved"))  # also forgets what was read
    base = root / f"moved/ytvis_{year}"
    write_videos(base / f"{split}.json", base / split / "JPEGImages", names=("ant",), first_id=7)
    assert load_dataset(name)[0]["file_names"] == [str(base / split / "JPEGImages/v/0.jpg")]
    metadata = MetadataCatalog.get(name)
    assert metadata.json_file == str(base / f"{split}.json") and metadata.image_root == str(base / split / "JPEGImages")
    assert metadata.evaluator_type == "ytvis"
    assert metadata.thing_classes == ["ant"] and metadata.thing_dataset_id_to_contiguous_id == {7: 0}


def test_synthetic_sets(root):
    from solotrack.data.synthetic import write_synthetic

    write_synthetic(root / "synthetic", 3, images=2, val_images=1, videos=1, unlabelled_videos=1, frames=2, size=64, workers=1)
    classes = dataset_metadata("synthetic_train").thing_classes
    assert classes and classes == dataset_metadata("synthetic_val").thing_classes == dataset_metadata("synthetic_test").thing_classes
    assert [len(load_dataset(f"synthetic_{split}")) for split in ("train", "val", "test", "unlabelled")] == [2, 1, 1, 1]
    assert {a["category_id"] for record in load_dataset("synthetic_train") for a in record["annotations"]} <= set(range(len(classes)))
    assert all(os.path.isfile(file) for file in load_dataset("synthetic_test")[0]["file_names"])


def test_custom_sets_are_registered_once(tmp_path, monkeypatch):
    write_images(tmp_path / "a.json", tmp_path / "a", [[4], [9]], [{"id": 9, "name": "bee"}, {"id": 4, "name": "ant"}])
    write_videos(tmp_path / "v.json", tmp_path / "v", names=None)
    name, video_name = f"{tmp_path.name}_a", f"{tmp_path.name}_v"
    monkeypatch.chdir(tmp_path)
    cfg = config(images=[[name, "a.json", "a"]], videos=[[video_name, "v.json", "v"]])
    register_custom(cfg)  # again
    monkeypatch.chdir("/")  # paths were relative to the folder of then
    assert [[a["category_id"] for a in r["annotations"]] for r in load_dataset(name)] == [[0], [1]]
    metadata = dataset_metadata(name)
    assert metadata.thing_classes == ["ant", "bee"] and metadata.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}
    assert (metadata.json_file, metadata.image_root, metadata.evaluator_type) == (str(tmp_path / "a.json"), str(tmp_path / "a"), "coco")
    assert len(load_dataset(video_name)) == 1 and dataset_metadata(video_name).thing_classes == []
    with pytest.raises(ConfigError, match=rf"calls a data set '{name}', but one with other files has that name"):
        config(images=[[name, "b.json", "a"]])
    with pytest.raises(ConfigError, match="'coco_2017_train'"):
        config(images=[["coco_2017_train", "b.json", "a"]])


def test_unknown_names_and_files_without_categories(root):
    with pytest.raises(DatasetError, match=r"no data set 'synthetic_trian'\. Did you mean synthetic_train"):
        load_dataset("synthetic_trian")
    write_images(root / "a.json", root / "a", [[]], [])
    name = f"{root.name}_a"
    config(images=[[name, str(root / "a.json"), str(root / "a")]])
    with pytest.raises(DatasetError, match=r"a\.json has no categories"):
        load_dataset(name)


def test_class_to_dataset_id_goes_by_name():
    train = ["person", "car", "motorcycle", "tennis racket", "mouse"]
    categories = [{"id": 40, "name": "tennis_racket"}, {"id": 6, "name": "sedan"}, {"id": 3, "name": "owl"}, {"id": 1, "name": "Person"}]
    assert class_to_dataset_id(train, categories) == {0: 1, 1: 6, 3: 40}
    assert class_to_dataset_id(["sedan", "motorbike"], [{"id": 5, "name": "car"}, {"id": 23, "name": "motorbike"}]) == {0: 5, 1: 23}
    same = [{"id": 10 + i, "name": name} for i, name in enumerate(train)]
    assert class_to_dataset_id(train, same[::-1]) == {i: 10 + i for i in range(5)}
    with pytest.raises(DatasetError, match=r"\(person, car, .*\) and the test file's \(fly\) have no name in common"):
        class_to_dataset_id(train, [{"id": 1, "name": "fly"}])
    with pytest.raises(DatasetError, match=r"test categories .* have 'sedan' more than once"):
        class_to_dataset_id(train, [{"id": 1, "name": "car"}, {"id": 2, "name": "sedan"}])


def test_name20_classes_find_their_ytvis_categories(root):
    from solotrack.data.categories import COCO_TO_YTVIS_2019_NAME20, YTVIS_2019_CATEGORIES

    metadata = MetadataCatalog.get("coco_2017_train_name20")
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(YTVIS_2019_CATEGORIES)]
    matches = class_to_dataset_id(metadata.thing_classes, categories)
    assert {coco: matches[index] for coco, index in metadata.thing_dataset_id_to_contiguous_id.items()} == COCO_TO_YTVIS_2019_NAME20


def test_number_of_classes(tmp_path):
    ants = [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]
    names = []
    for file, categories in (("a", ants), ("b", ants), ("c", [{"id": 1, "name": "bee"}, {"id": 2, "name": "ant"}])):
        write_images(tmp_path / f"{file}.json", tmp_path / file, [[1, 2]], categories)
        names.append([f"{tmp_path.name}_{file}", str(tmp_path / f"{file}.json"), str(tmp_path / file)])
    write_videos(tmp_path / "v.json", tmp_path / "v")
    video = [f"{tmp_path.name}_v", str(tmp_path / "v.json"), str(tmp_path / "v")]

    def check(*sets: list[str], classes: int = 2) -> None:
        train = ["DATASETS.TRAIN", str(tuple(s[0] for s in sets)), "MODEL.SOLO.NUM_CLASSES", str(classes)]
        check_num_classes(config(*train, images=names, videos=[video]))

    check(names[0], names[1])
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 80 but .*_a has 2 categories \(ant, bee\); set MODEL.SOLO.NUM_CLASSES to 2"):
        check(names[0], classes=80)
    with pytest.raises(ConfigError, match=r"_a \(ant, bee\) and .*_c \(bee, ant\) differ"):
        check(names[0], names[2])
    with pytest.raises(ConfigError, match="_v, which is a set of videos"):
        check(video)


def test_test_sets_are_compared_by_name(tmp_path, caplog):
    sets = {}
    for file, categories in (("train", ["car", "person"]), ("same", ["car", "person"]), ("other", ["person", "car"])):
        write_images(tmp_path / f"{file}.json", tmp_path / file, [[1]], [{"id": i + 1, "name": n} for i, n in enumerate(categories)])
        sets[file] = [f"{tmp_path.name}_{file}", str(tmp_path / f"{file}.json"), str(tmp_path / file)]
    images = list(sets.values())
    for file, names in (("reordered", ("person", "sedan")), ("owls", ("person", "owl")), ("flies", ("fly",)), ("unlabelled", None)):
        write_videos(tmp_path / f"{file}.json", tmp_path / file, names)
        sets[file] = [f"{tmp_path.name}_{file}", str(tmp_path / f"{file}.json"), str(tmp_path / file)]
    videos = list(sets.values())[3:]

    def check(name: str) -> str:
        caplog.clear()
        overrides = ["DATASETS.TRAIN", str((sets["train"][0],)), "DATASETS.TEST", str((sets[name][0],))]
        with caplog.at_level(logging.WARNING, logger="solotrack.data.catalog"):
            check_test_categories(config(*overrides, images=images, videos=videos))
        return caplog.text

    assert check("same") == check("reordered") == check("unlabelled") == ""
    text = check("owls")
    assert "does not teach: owl" in text and "does not have: car" in text
    with pytest.raises(DatasetError, match="no name in common"):
        check("flies")
    with pytest.raises(ConfigError, match=r"_other \(person, car\) has other categories, or another order"):
        check("other")
    check_test_categories(config())  # nothing to compare
