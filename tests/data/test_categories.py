from __future__ import annotations

import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from solotrack.data.categories import (
    COCO_TO_OVIS,
    COCO_TO_YTVIS_2019_NAME20,
    COCO_TO_YTVIS_2019_SEM19,
    COCO_TO_YTVIS_2021,
    OVIS_CATEGORIES,
    YTVIS_2019_CATEGORIES,
    YTVIS_2021_CATEGORIES,
    subset_category_ids,
)

COCO_NAMES = {c["id"]: c["name"].replace(" ", "_") for c in COCO_CATEGORIES if c["isthing"]}


def records(names) -> list[dict]:
    return [{"id": i, "name": name} for i, name in enumerate(names, start=1)]


def test_numbers_of_categories():
    for names, number in ((YTVIS_2019_CATEGORIES, 40), (YTVIS_2021_CATEGORIES, 40), (OVIS_CATEGORIES, 25)):
        assert len(names) == len(set(names)) == number


@pytest.mark.parametrize(
    ("mapping", "names", "renamed"),
    [
        (COCO_TO_YTVIS_2019_NAME20, YTVIS_2019_CATEGORIES, {"car": "sedan", "motorcycle": "motorbike"}),
        (COCO_TO_YTVIS_2019_SEM19, YTVIS_2019_CATEGORIES, {"car": "sedan", "motorcycle": "motorbike"}),
        (
            COCO_TO_YTVIS_2021,
            YTVIS_2021_CATEGORIES,
            {"motorcycle": "motorbike", "bicycle": "motorbike", "skis": "snowboard", "frisbee": "flying_disc"},
        ),
        (COCO_TO_OVIS, OVIS_CATEGORIES, {"car": "vehicle", "bus": "vehicle", "truck": "vehicle"}),
    ],
)
def test_maps_join_categories_of_one_name(mapping, names, renamed):
    for coco, target in mapping.items():
        assert names[target - 1].lower() == renamed.get(COCO_NAMES[coco], COCO_NAMES[coco])


def test_subsets_have_exactly_20_and_19_categories():
    assert len(COCO_TO_YTVIS_2019_NAME20) == len(set(COCO_TO_YTVIS_2019_NAME20.values())) == 20
    assert len(COCO_TO_YTVIS_2019_SEM19) == 19
    assert set(COCO_TO_YTVIS_2019_NAME20.items()) - set(COCO_TO_YTVIS_2019_SEM19.items()) == {(74, 36)}


def test_name20_misses_no_shared_name():
    """Found anew from the two lists of names."""
    same = {"car": "sedan", "motorcycle": "motorbike"}
    shared = {
        (i, YTVIS_2019_CATEGORIES.index(same.get(n, n)) + 1) for i, n in COCO_NAMES.items() if same.get(n, n) in YTVIS_2019_CATEGORIES
    }
    assert shared == set(COCO_TO_YTVIS_2019_NAME20.items())


@pytest.mark.parametrize(("subset", "number"), [("all", 40), ("name20", 20), ("sem19", 19)])
@pytest.mark.parametrize("names", [YTVIS_2019_CATEGORIES, YTVIS_2021_CATEGORIES])
def test_subset_ids_by_name(names, subset, number):
    ids = subset_category_ids(reversed(records(names)), subset)
    assert len(ids) == number
    assert ids == sorted(ids)
    assert ("mouse" in {names[i - 1] for i in ids}) == (subset != "sem19")


def test_subset_ids_of_2019_are_the_targets_of_the_map():
    assert subset_category_ids(records(YTVIS_2019_CATEGORIES), "name20") == sorted(COCO_TO_YTVIS_2019_NAME20.values())


def test_subset_ids_do_not_depend_on_spelling_or_numbering():
    categories = [
        {"id": 70, "name": "Tennis racket"},
        {"id": 5, "name": "motorcycle"},
        {"id": 9, "name": "Car"},
        {"id": 2, "name": "lizard"},
    ]
    assert subset_category_ids(categories, "sem19") == [5, 9, 70]


def test_subset_without_a_match_is_an_error():
    with pytest.raises(ValueError, match="disc, square"):
        subset_category_ids(records(["disc", "square"]), "name20")
    with pytest.raises(ValueError, match="none"):
        subset_category_ids([], "all")
    with pytest.raises(ValueError, match="choose one of all, name20, sem19"):
        subset_category_ids(records(["person"]), "name21")
