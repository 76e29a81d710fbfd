"""Names of the data sets: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` may hold, where the files are, and which class is which category.

Registering a set only notes where its files may be; the disk is looked at when ``load_dataset`` or ``dataset_metadata`` asks for them.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from solotrack.config import ConfigError, classes_key, num_classes, trains_on_videos

from .annotation_file import DatasetError, class_ids, read_categories
from .categories import canonical_name, subset_category_ids
from .coco import load_coco_instances
from .ytvis import load_ytvis

__all__ = [
    "check_num_classes",
    "check_test_categories",
    "class_to_dataset_id",
    "dataset_metadata",
    "load_dataset",
    "model_class_names",
    "register_all",
    "register_custom",
]

logger = logging.getLogger(__name__)

_EVALUATORS = {"images": "coco", "videos": "ytvis"}


@dataclass(frozen=True)
class DatasetFiles:
    """Where a data set's files may be.

    Attributes:
        kind: "images" (COCO json) or "videos" (YouTube-VIS json).
        layouts: (json file, picture folder) pairs; the first one whose json exists is taken.
        subset: "all", or a category subset of COCO.
    """

    kind: str
    layouts: tuple[tuple[str, str], ...]
    subset: str = "all"

    def locate(self, name: str) -> tuple[str, str]:
        """The json and the folder that are there."""
        for json_file, folder in self.layouts:
            if os.path.isfile(json_file):
                return json_file, folder
        looked = " or ".join(json_file for json_file, _ in self.layouts)
        raise FileNotFoundError(
            f"The data set {name} is not here: there is no file {looked}. "
            "Put it there, or set DETECTRON2_DATASETS to the folder that holds your data sets."
        )


_FILES: dict[str, DatasetFiles] = {}  # every set registered here, by name


def register_all(root: str = "datasets") -> None:
    """Register the data sets under a folder, without looking at it; called again with another folder it moves them there.

    ``coco_2017_{train,val}_{name20,sem19}``: COCO with the categories that YouTube-VIS has too (METHOD 8.2).
    ``ytvis_{2019,2021}_{train,valid,test}``: either folder layout of METHOD 8.3.
    ``synthetic_{train,val,test,unlabelled}``: the made data, train and val images, test and unlabelled videos.
    """
    root = os.path.expanduser(root)
    for split in ("train", "val"):
        coco = os.path.join(root, "coco")
        layout = (os.path.join(coco, "annotations", f"instances_{split}2017.json"), os.path.join(coco, f"{split}2017"))
        for subset in ("name20", "sem19"):
            _register(f"coco_2017_{split}_{subset}", DatasetFiles("images", (layout,), subset))
    for year in (2019, 2021):
        base = os.path.join(root, f"ytvis_{year}")
        for split, other in (("train", "train"), ("valid", "val"), ("test", "test")):
            mask2former = (os.path.join(base, f"{split}.json"), os.path.join(base, split, "JPEGImages"))
            vnext = (os.path.join(base, "annotations", f"instances_{other}_sub.json"), os.path.join(base, other, "JPEGImages"))
            _register(f"ytvis_{year}_{split}", DatasetFiles("videos", (mask2former, vnext)))
    base = os.path.join(root, "synthetic")
    for split, kind, folder in (
        ("train", "images", "train"),
        ("val", "images", "val"),
        ("test", "videos", "videos/test"),
        ("unlabelled", "videos", "videos/unlabelled"),
    ):
        _register(f"synthetic_{split}", DatasetFiles(kind, ((os.path.join(base, f"{split}.json"), os.path.join(base, folder)),)))


def register_custom(cfg: CfgNode) -> None:
    """Register the sets of ``DATASETS.CUSTOM``; paths are relative to the current folder. Registering the same set again does nothing.

    Raises:
        ConfigError: a name that a data set with other files has already.
    """
    for kind, entries in (("images", cfg.DATASETS.CUSTOM.IMAGES), ("videos", cfg.DATASETS.CUSTOM.VIDEOS)):
        for name, json_file, folder in entries:
            layout = tuple(os.path.abspath(os.path.expanduser(path)) for path in (json_file, folder))
            files = DatasetFiles(kind, (layout,))
            if name in DatasetCatalog and _FILES.get(name) != files:
                raise ConfigError(
                    f"DATASETS.CUSTOM.{kind.upper()} calls a data set {name!r}, but one with other files has that name; choose a new name."
                )
            _register(name, files)


def _register(name: str, files: DatasetFiles) -> None:
    if _FILES.get(name) == files:
        return
    if name in _FILES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    _FILES[name] = files
    DatasetCatalog.register(name, partial(_load, name))
    metadata = MetadataCatalog.get(name)
    metadata.evaluator_type = _EVALUATORS[files.kind]
    if len(files.layouts) == 1:
        _set_files(metadata, files, *files.layouts[0])
    if files.subset != "all":
        things = [category for category in COCO_CATEGORIES if category["isthing"]]
        _set_classes(metadata, things, subset_category_ids(things, files.subset))


def _set_files(metadata: Metadata, files: DatasetFiles, json_file: str, folder: str) -> None:
    metadata.image_root = folder
    if files.subset == "all":
        metadata.json_file = json_file


def _set_classes(metadata: Metadata, categories: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> None:
    chosen = [category for category in categories if category["id"] in set(ids)]
    metadata.thing_classes = [category["name"] for category in chosen]
    metadata.thing_dataset_id_to_contiguous_id = class_ids(chosen)


def _load(name: str) -> list[dict[str, Any]]:
    files = _FILES[name]
    json_file, folder = files.locate(name)
    metadata = dataset_metadata(name)
    if files.kind == "videos":
        return load_ytvis(json_file, folder)
    return load_coco_instances(json_file, folder, None if files.subset == "all" else metadata.thing_dataset_id_to_contiguous_id)


def dataset_metadata(name: str) -> Metadata:
    """A data set's metadata, complete: what only its files can tell is read now.

    Sets of this package have evaluator_type ("coco" or "ytvis"), json_file, image_root (of images or frames), thing_classes and
    thing_dataset_id_to_contiguous_id (both empty for videos without categories). COCO subsets have no json_file: Detectron2's COCOEvaluator
    would score all of COCO's categories by it, and writes itself a json of the subset when there is none.

    Raises:
        FileNotFoundError, DatasetError: there is no such data set, or its json is missing or broken.
    """
    _check_name(name)
    metadata = MetadataCatalog.get(name)
    files = _FILES.get(name)
    if files is not None and not hasattr(metadata, "thing_classes"):
        json_file, folder = files.locate(name)
        categories = read_categories(json_file)
        if files.kind == "images" and not categories:
            raise DatasetError(f"{json_file} has no categories; labelled images need them.")
        _set_files(metadata, files, json_file, folder)
        _set_classes(metadata, categories, [category["id"] for category in categories])
    return metadata


def load_dataset(name: str) -> list[dict[str, Any]]:
    """The dicts of a registered data set.

    Raises:
        FileNotFoundError, DatasetError: there is no such data set, or its files are missing, broken or list nothing.
    """
    _check_name(name)
    dicts = DatasetCatalog.get(name)
    if not dicts:
        raise DatasetError(f"The data set {name} is empty: its json lists neither images nor videos.")
    return dicts


def _check_name(name: str) -> None:
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3, cutoff=0.6)
        raise DatasetError(
            f"There is no data set {name!r}."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
            + " Data of your own are named in DATASETS.CUSTOM: IMAGES, VIDEOS and, for DATASETS.TRAIN_CLIPS, CLIPS."
        )


def model_class_names(cfg: CfgNode) -> list[str]:
    """Names of the model's classes: DATASETS.CLASS_NAMES, else those of the training set.

    Raises:
        ConfigError: neither names them.
        FileNotFoundError, DatasetError: the training set cannot be read.
    """
    if cfg.DATASETS.CLASS_NAMES:
        return list(cfg.DATASETS.CLASS_NAMES)
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("The model's classes have no names: set DATASETS.CLASS_NAMES or DATASETS.TRAIN.")
    return list(dataset_metadata(cfg.DATASETS.TRAIN[0]).thing_classes)


def class_to_dataset_id(train_names: Sequence[str], test_categories: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Class of the model -> category id of a test file, matched by name.

    The file may have the categories in another order, more of them or fewer. Case, spaces and the spellings in which COCO and YouTube-VIS
    differ do not count (METHOD 8.2): car is sedan, motorcycle is motorbike, "tennis racket" is tennis_racket.

    Args:
        train_names: names of the training set's classes 0 .. C - 1.
        test_categories: the test file's categories, each with ``id`` and ``name``.

    Returns:
        An entry for each class that the test file has. Predictions of the other classes cannot be scored.

    Raises:
        DatasetError: no name in common, or two names on one side that mean the same.
    """
    ids = _by_canonical_name([c["name"] for c in test_categories], [c["id"] for c in test_categories], "test")
    classes = _by_canonical_name(train_names, range(len(train_names)), "training")
    matches = {index: ids[name] for name, index in classes.items() if name in ids}
    if not matches:
        raise DatasetError(
            f"The model's categories ({_some(train_names)}) and the test file's ({_some([c['name'] for c in test_categories])}) "
            "have no name in common; rename those that mean the same."
        )
    return matches


def _by_canonical_name(names: Sequence[str], values: Sequence[int], side: str) -> dict[str, int]:
    table = {}
    for name, value in zip(names, values, strict=True):
        if canonical_name(name) in table:
            raise DatasetError(f"The {side} categories ({_some(names)}) have {name!r} more than once; give each category its own name.")
        table[canonical_name(name)] = value
    return table


def _some(names: Sequence[str], limit: int = 10) -> str:
    return ", ".join([*names[:limit], *(["..."] if len(names) > limit else [])]) or "none"


def check_num_classes(cfg: CfgNode) -> None:
    """Check that the training sets are labelled images, or videos for a model that learns from these, and have as many categories as the
    model, all sets the same ones in the same order.

    Raises:
        ConfigError: they do not.
        FileNotFoundError, DatasetError: a training set cannot be read.
    """
    names = list(cfg.DATASETS.TRAIN)
    first = None
    for name in names:
        metadata = dataset_metadata(name)
        is_videos = metadata.evaluator_type == "ytvis"
        if is_videos and not trains_on_videos(cfg):
            raise ConfigError(f"DATASETS.TRAIN has {name}, which is a set of videos; training reads labelled images.")
        if trains_on_videos(cfg) and not is_videos:
            raise ConfigError(
                f"DATASETS.TRAIN has {name}, which is a set of images; {cfg.MODEL.META_ARCHITECTURE} learns from labelled videos."
            )
        classes = metadata.thing_classes
        if len(classes) != num_classes(cfg):
            key = classes_key(cfg)
            raise ConfigError(
                f"{key} is {num_classes(cfg)} but {name} has {len(classes)} categories ({_some(classes)}); set {key} to {len(classes)}."
            )
        first = first or classes
        if classes != first:
            raise ConfigError(
                f"The training sets {names[0]} ({_some(first)}) and {name} ({_some(classes)}) differ in their categories; "
                "give both the same names with ids in the same order."
            )


def check_test_categories(cfg: CfgNode) -> None:
    """Check the test sets' categories against the training set's, by name.

    Videos may have others, more or fewer; those of one side only are logged. Images are scored by Detectron2's COCOEvaluator, which takes
    a class for the category at its place, so their names and order must be the training set's.

    Raises:
        ConfigError: an image set with other categories.
        DatasetError: no category in common, or the files are broken.
        FileNotFoundError: a set's files are missing.
    """
    if not cfg.DATASETS.TRAIN:
        return
    train = cfg.DATASETS.TRAIN[0]
    names = dataset_metadata(train).thing_classes
    for test in cfg.DATASETS.TEST:
        metadata = dataset_metadata(test)
        classes = metadata.thing_classes
        if metadata.evaluator_type != "ytvis":
            if classes != names:
                raise ConfigError(
                    f"The image set {test} ({_some(classes)}) has other categories, or another order, than the training set "
                    f"{train} ({_some(names)}); give both the same names with ids in the same order."
                )
            continue
        if not classes:
            continue  # unlabelled videos: nothing to score
        matches = class_to_dataset_id(names, [{"id": index, "name": name} for index, name in enumerate(classes)])
        unseen = [name for index, name in enumerate(classes) if index not in matches.values()]
        unscored = [name for index, name in enumerate(names) if index not in matches]
        if unseen:
            logger.warning(f"{test} has categories that {train} does not teach: {_some(unseen)}. Their AP is 0 unless they are left out.")
        if unscored:
            logger.warning(f"{train} teaches categories that {test} does not have: {_some(unscored)}. Their predictions are not scored.")
