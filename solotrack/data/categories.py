"""Category names of the video data sets and their overlap with COCO (METHOD 8.1, 8.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .annotation_file import DatasetError

__all__ = [
    "CATEGORY_SUBSETS",
    "COCO_TO_OVIS",
    "COCO_TO_YTVIS_2019_NAME20",
    "COCO_TO_YTVIS_2019_SEM19",
    "COCO_TO_YTVIS_2021",
    "OVIS_CATEGORIES",
    "YTVIS_2019_CATEGORIES",
    "YTVIS_2021_CATEGORIES",
    "subset_category_ids",
]

# Names in id order; the first has id 1.
# fmt: off
YTVIS_2019_CATEGORIES: tuple[str, ...] = (
    "person", "giant_panda", "lizard", "parrot", "skateboard", "sedan", "ape", "dog", "snake", "monkey",
    "hand", "rabbit", "duck", "cat", "cow", "fish", "train", "horse", "turtle", "bear",
    "motorbike", "giraffe", "leopard", "fox", "deer", "owl", "surfboard", "airplane", "truck", "zebra",
    "tiger", "elephant", "snowboard", "boat", "shark", "mouse", "frog", "eagle", "earless_seal", "tennis_racket",
)
YTVIS_2021_CATEGORIES: tuple[str, ...] = (
    "airplane", "bear", "bird", "boat", "car", "cat", "cow", "deer", "dog", "duck",
    "earless_seal", "elephant", "fish", "flying_disc", "fox", "frog", "giant_panda", "giraffe", "horse", "leopard",
    "lizard", "monkey", "motorbike", "mouse", "parrot", "person", "rabbit", "shark", "skateboard", "snake",
    "snowboard", "squirrel", "surfboard", "tennis_racket", "tiger", "train", "truck", "turtle", "whale", "zebra",
)
OVIS_CATEGORIES: tuple[str, ...] = (
    "Person", "Bird", "Cat", "Dog", "Horse", "Sheep", "Cow", "Elephant", "Bear", "Zebra",
    "Giraffe", "Poultry", "Giant_panda", "Lizard", "Parrot", "Monkey", "Rabbit", "Tiger", "Fish", "Turtle",
    "Bicycle", "Motorcycle", "Airplane", "Boat", "Vehicle",
)

# The 20 categories whose names YouTube-VIS 2019 shares with COCO: COCO id -> YouTube-VIS 2019 id.
COCO_TO_YTVIS_2019_NAME20: dict[int, int] = {
    1: 1, 3: 6, 4: 21, 5: 28, 7: 17, 8: 29, 9: 34, 17: 14, 18: 8, 19: 18,
    21: 15, 22: 32, 23: 20, 24: 30, 25: 22, 36: 33, 41: 5, 42: 27, 43: 40, 74: 36,
}
# COCO's mouse is a computer's and YouTube-VIS's an animal: 19 categories share their meaning too.
COCO_TO_YTVIS_2019_SEM19: dict[int, int] = {coco: ytvis for coco, ytvis in COCO_TO_YTVIS_2019_NAME20.items() if coco != 74}
# These two also send COCO categories to a near neighbour (bicycle -> motorbike, skis -> snowboard, car and bus -> vehicle).
COCO_TO_YTVIS_2021: dict[int, int] = {
    1: 26, 2: 23, 3: 5, 4: 23, 5: 1, 7: 36, 8: 37, 9: 4, 16: 3, 17: 6, 18: 9, 19: 19,
    21: 7, 22: 12, 23: 2, 24: 40, 25: 18, 34: 14, 35: 31, 36: 31, 41: 29, 42: 33, 43: 34,
}
COCO_TO_OVIS: dict[int, int] = {
    1: 1, 2: 21, 3: 25, 4: 22, 5: 23, 6: 25, 8: 25, 9: 24, 17: 3,
    18: 4, 19: 5, 20: 6, 21: 7, 22: 8, 23: 9, 24: 10, 25: 11,
}
# fmt: on

_SYNONYMS = {"car": "sedan", "motorcycle": "motorbike"}  # one spelling for the same category in 2019, 2021 and COCO


def canonical_name(name: str) -> str:
    """One spelling for a category, whatever its case, spaces and data set: "Tennis racket" -> "tennis_racket", "car" -> "sedan"."""
    name = name.strip().lower().replace(" ", "_")
    return _SYNONYMS.get(name, name)


def _names_2019(ids: Iterable[int]) -> frozenset[str]:
    return frozenset(YTVIS_2019_CATEGORIES[i - 1] for i in ids)


_SUBSET_NAMES = {
    "name20": _names_2019(COCO_TO_YTVIS_2019_NAME20.values()),
    "sem19": _names_2019(COCO_TO_YTVIS_2019_SEM19.values()),
}
CATEGORY_SUBSETS: tuple[str, ...] = ("all", *_SUBSET_NAMES)


def subset_category_ids(categories: Iterable[Mapping], subset: str) -> list[int]:
    """Ids of the categories of a json file that belong to a subset, found by name (METHOD 8.2).

    Names are compared without regard to case, and ``car``/``sedan``, ``motorcycle``/``motorbike`` and spaces/underscores are the same,
    so the subsets mean the same objects in YouTube-VIS 2019, 2021 and in files of one's own.

    Args:
        categories: the ``categories`` of the json file, each with ``id`` and ``name``.
        subset: ``"all"``; ``"name20"``, the 20 categories whose names occur in COCO; ``"sem19"``, the same without ``mouse``.

    Returns:
        The ids, ascending. A file may hold fewer than the subset's 20 or 19 categories.

    Raises:
        ValueError: the subset is unknown.
        DatasetError: no category of the file belongs to it.
    """
    if subset not in CATEGORY_SUBSETS:
        raise ValueError(f"unknown category subset {subset!r}: choose one of {', '.join(CATEGORY_SUBSETS)}")
    categories = list(categories)
    ids = sorted(c["id"] for c in categories if subset == "all" or canonical_name(c["name"]) in _SUBSET_NAMES[subset])
    if not ids:
        names = ", ".join(str(c["name"]) for c in categories[:10]) or "none"
        raise DatasetError(f"no category belongs to the subset {subset!r}; the file's categories are: {names}. Use the subset 'all'")
    return ids
