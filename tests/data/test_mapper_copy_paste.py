"""Instances pasted into the images that the mapper reads."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from solotrack.config import load_config
from solotrack.data.frames import FrameError
from solotrack.data.mappers import ImageMapper
from tests.data.labelled import H, annotation, boxes_by_hand, plain


@pytest.fixture
def donor(tmp_path: Path) -> dict[str, Any]:
    """A white image of another size, with a crowd and two squares."""
    cv2.imwrite(str(tmp_path / "b.png"), np.full((40, 50, 3), 255, np.uint8))
    squares = [[[x, 5.0, x + 12, 5.0, x + 12, 17.0, x, 17.0]] for x in (5.0, 30.0)]
    everything = [[0.0, 0.0, 50.0, 0.0, 50.0, 40.0, 0.0, 40.0]]
    annotations = [annotation(everything, 0, crowd=1), annotation(squares[0], 2), annotation(squares[1], 3)]
    return {"file_name": str(tmp_path / "b.png"), "image_id": 8, "height": 40, "width": 50, "annotations": annotations}


PASTE = ["INPUT.COPY_PASTE.PROB", "1.0", "INPUT.COPY_PASTE.MAX_INSTANCES", "2", "INPUT.COPY_PASTE.SCALE_RANGE", "[1.0, 1.0]"]


def pasting(donors: list[dict[str, Any]], *overrides: str) -> ImageMapper:
    words = ["INPUT.MIN_SIZE_TRAIN", f"({H},)", "INPUT.RANDOM_FLIP", "none", *PASTE, *overrides]
    return ImageMapper(load_config("", words), donors=donors)


def test_pasted_instances(record, donor, seeded):
    """They are the donor's, at the size that the augmentations give it, and hide what is below."""
    before = copy.deepcopy((record, donor))
    counts = set()
    for seed in range(12):
        seeded(seed)
        mapped = pasting([donor])(record)
        image, instances = mapped["image"].numpy(), mapped["instances"]
        pasted = instances.gt_ids >= 6  # the record's six annotations come before the donor's
        counts.add(int(pasted.sum()))
        classes = {6 + 1: 2, 6 + 2: 3} | {0: 1, 2: 0, 4: 2, 5: 3}
        assert instances.gt_classes.tolist() == [classes[i] for i in instances.gt_ids.tolist()]
        masks = instances.gt_masks.tensor.numpy()
        covered = masks[pasted.numpy()].any(axis=0)
        assert (image[:, covered] == 255).all() and not (masks[~pasted.numpy()] & covered).any()
        np.testing.assert_array_equal(image[:, ~covered], plain()(record)["image"].numpy()[:, ~covered])
        assert masks[pasted.numpy()].sum(axis=(1, 2)).max() == 18**2  # 12 pixels * 60 / 40; what is on top is whole
        assert instances.gt_boxes.tensor.tolist() == boxes_by_hand(instances.gt_masks.tensor)
        assert {k: mapped[k] for k in ("file_name", "height", "width")} == {k: record[k] for k in ("file_name", "height", "width")}
    assert counts == {1, 2} and (record, donor) == before


def test_both_views_show_what_was_pasted(record, donor, seeded):
    common = Counter()
    for seed in range(10):
        seeded(seed)
        mapped = pasting([donor], "MODEL.SOLO_TRACK.EMB.VIEWS", "2", "INPUT.VIEWS.SHIFT", "0.1")(record)
        common.update(set(mapped["instances"].gt_ids.tolist()) & set(mapped["second_view"]["instances"].gt_ids.tolist()))
    assert common[7] + common[8] > 8 and common[4] > 5


def test_an_image_gets_nothing_from_itself_nor_where_there_is_nothing(record, donor, seeded):
    seeded(0)
    for donors in ([record], [], [donor | {"annotations": donor["annotations"][:1]}], [donor | {"annotations": []}]):
        mapped = pasting(donors)(record)
        assert torch.equal(mapped["image"], plain()(record)["image"]) and mapped["instances"].gt_ids.tolist() == [0, 2, 4, 5]
    empty = pasting([donor])(record | {"annotations": []})
    assert set(empty["instances"].gt_ids.tolist()) <= {1, 2} and len(empty["instances"])


def test_how_often_it_pastes_and_from_whom(record, donor, tmp_path, seeded):
    dark = donor | {"file_name": str(tmp_path / "c.png")}
    cv2.imwrite(dark["file_name"], np.zeros((40, 50, 3), np.uint8))
    seeded(0)
    mapper, seen = pasting([donor, dark], "INPUT.COPY_PASTE.PROB", "0.5"), Counter()
    for _ in range(120):
        mapped = mapper(record)
        pasted = mapped["instances"].gt_masks.tensor[mapped["instances"].gt_ids >= 6].any(0)
        seen[int(mapped["image"][0][pasted].max()) if pasted.any() else None] += 1
    assert 45 < seen[None] < 75 and min(seen[0], seen[255]) > 15
    off = pasting([donor], "INPUT.COPY_PASTE.PROB", "0.0", "INPUT.AUG.COLOR", "0.5")
    seeded(1)
    expected = plain("INPUT.AUG.COLOR", "0.5")(record)["image"]
    seeded(1)
    assert torch.equal(off(record)["image"], expected), "switched off it draws no random number"


def test_instances_pasted_into_their_own_image_keep_their_identity(record, seeded):
    """They are there twice: the same pixels in another place, under one id and class."""
    classes, twice = {0: 1, 2: 0, 4: 2, 5: 3}, 0
    original = plain()(record)
    whole = original["instances"]
    pixels = {int(i): original["image"][:, mask] for i, mask in zip(whole.gt_ids, whole.gt_masks.tensor, strict=True)}
    for seed in range(12):
        seeded(seed)
        mapped = pasting([], "INPUT.COPY_PASTE.SOURCE", "same")(record)
        instances = mapped["instances"]
        ids = instances.gt_ids.tolist()
        assert instances.gt_classes.tolist() == [classes[i] for i in ids]
        masks = instances.gt_masks.tensor
        assert masks.sum(0).max() <= whole.gt_masks.tensor.sum(0).max()
        for place, i in enumerate(ids):
            if ids.index(i) < place and masks[place].sum() == pixels[i].shape[1]:  # a second one, and all of it in sight
                assert torch.equal(mapped["image"][:, masks[place]], pixels[i])
                twice += 1
    assert twice > 6


def test_a_second_look_in_the_same_image_is_that_of_a_view(record, seeded):
    """Its colours are those of a jitter of its own, which without a view they are not."""
    lone = record | {"annotations": record["annotations"][:1]}

    def colours(*overrides: str) -> list[int]:
        """Of the mean colours of an instance in its two places, the largest difference of a channel."""
        differences = []
        for seed in range(8):
            seeded(seed)
            mapped = pasting([], "INPUT.COPY_PASTE.SOURCE", "same", *overrides)(lone)
            assert mapped["instances"].gt_ids.tolist() in ([0], [0, 0])
            means = [mapped["image"][:, mask].float().mean(dim=1) for mask in mapped["instances"].gt_masks.tensor]
            if len(means) == 2:
                differences.append(float((means[0] - means[1]).abs().max()))
        assert len(differences) > 2
        return differences

    assert max(colours()) < 10 < max(colours("INPUT.AUG.COLOR", "0.8"))


def test_an_image_without_an_instance_has_none_to_paste(record, seeded):
    seeded(0)
    for view in ([], ["INPUT.AUG.STRONG", "True"]):
        assert not len(pasting([], "INPUT.COPY_PASTE.SOURCE", "same", *view)(record | {"annotations": []})["instances"])


def test_a_broken_donor_is_named(record, donor):
    Path(donor["file_name"]).write_bytes(b"")
    with pytest.raises(FrameError, match=r"b\.png cannot be read"):
        pasting([donor])(record)
