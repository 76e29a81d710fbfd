from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from solotrack.data.annotation_file import DatasetError
from solotrack.data.coco import load_coco_instances
from solotrack.data.mosaic import cover_crop, draw_mosaic, write_mosaics
from solotrack.ops.rle import decode_rle
from tests import tiny


def picture(seed: int, height: int, width: int, objects: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A dark image with rectangles; object k is of colour 60 (k + 1)."""
    rng = np.random.default_rng(seed)
    image, masks = np.zeros((height, width, 3), np.uint8), np.zeros((objects, height, width), np.uint8)
    for k, mask in enumerate(masks):
        x = k * width // objects
        y, h = rng.integers(0, height // 2), rng.integers(height // 4, height // 2)
        mask[y : y + h, x + 2 : x + width // objects - 2] = 1
        image[mask > 0] = 60 * (k + 1)
    return image, masks


@pytest.mark.parametrize(("height", "width"), [(60, 40), (40, 60), (20, 18), (15, 90), (24, 32)])
def test_a_tile_is_covered_and_masks_stay_on_their_objects(height: int, width: int) -> None:
    image, masks = picture(0, height, width)
    tile, small = cover_crop(image + 10, masks, (24, 32), np.random.default_rng(1))
    assert tile.shape == (24, 32, 3) and small.shape == (3, 24, 32) and set(np.unique(small)) <= {0, 1}
    assert tile.min() >= 10, "no pixel is left empty"
    for k, mask in enumerate(small):
        inside = cv2.erode(mask, np.ones((3, 3))) > 0
        assert (tile[inside] == 60 * (k + 1) + 10).all()
        outside = cv2.dilate(mask, np.ones((3, 3))) == 0
        assert (tile[outside] != 60 * (k + 1) + 10).all()
    scale = max(24 / height, 32 / width)
    if (height, width) == (24, 32):
        np.testing.assert_array_equal(small, masks)
    assert small.sum() <= 1.3 * scale**2 * masks.sum()


def test_places_are_drawn_over_the_whole_picture() -> None:
    image = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (20, 100, 3)).copy()
    starts = {int(cover_crop(image, np.zeros((0, 20, 100), np.uint8), (20, 20), np.random.default_rng(i))[0][0, 0, 0]) for i in range(600)}
    assert starts == set(range(81))


def test_a_mosaic_puts_pictures_side_by_side() -> None:
    pictures = [picture(i, 30, 40) for i in range(9)]
    mosaic, masks, kept = draw_mosaic(pictures, 3, (91, 119), np.random.default_rng(0), 0.0)
    assert mosaic.shape == (91, 119, 3) and masks.shape[1:] == (91, 119) and len(masks) == len(kept)
    assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) >= 26
    assert masks.sum(0).max() == 1, "objects do not overlap"
    for index, mask in zip(kept, masks, strict=True):
        y, x = np.argwhere(mask).mean(0)
        assert (int(y // (91 / 3)), int(x // (119 / 3))) == divmod(index // 3, 3), "in the tile of its picture"
        inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3))) > 0
        assert (mosaic[inside] == 60 * (index % 3 + 1)).all()


def test_what_is_cut_off_too_far_has_no_mask() -> None:
    image, masks = np.zeros((20, 80, 3), np.uint8), np.zeros((4, 20, 80), np.uint8)
    for k, mask in enumerate(masks):
        mask[:, 20 * k : 20 * k + 20] = 1
    for seed in range(20):
        left = {}
        for share in (0.0, 0.5, 1.0):
            _, small, kept = draw_mosaic([(image, masks)], 1, (20, 30), np.random.default_rng(seed), share)
            left[share] = dict(zip(kept.tolist(), (small.sum((1, 2)) / 400).tolist(), strict=True))
        assert sum(left[0.0].values()) == 1.5
        for share in (0.5, 1.0):
            assert left[share] == {k: part for k, part in left[0.0].items() if part >= share}


def test_a_set_of_mosaics(tmp_path: Path) -> None:
    train = tiny.data_root() / "train.json"
    images = tiny.data_root() / "train"
    written = write_mosaics(str(train), str(images), tmp_path, count=5, seed=1, size=(64, 96))
    made = json.loads((tmp_path / "train.json").read_text())
    records = load_coco_instances(str(tmp_path / "train.json"), str(tmp_path))
    assert written == {"images": 5, "objects": sum(len(record["annotations"]) for record in records)}
    assert len(records[2]["annotations"]) > len(records[1]["annotations"]) > len(records[0]["annotations"]) > 0
    for record in records:
        assert cv2.imread(record["file_name"]).shape == (record["height"], record["width"], 3) == (64, 96, 3)
        for annotation in record["annotations"]:
            ys, xs = np.nonzero(decode_rle(annotation["segmentation"], 64, 96))
            area = next(x["area"] for x in made["annotations"] if x["id"] == annotation["id"])
            assert area == len(xs)
            assert annotation["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
    source = json.loads(train.read_text())
    assert made["categories"] == sorted(source["categories"], key=lambda c: c["id"])
    again, other = tmp_path / "again", tmp_path / "other"
    write_mosaics(str(train), str(images), again, count=5, seed=1, size=(64, 96))
    write_mosaics(str(train), str(images), other, count=5, seed=2, size=(64, 96))
    assert (again / "train.json").read_text() == (tmp_path / "train.json").read_text() != (other / "train.json").read_text()
    assert (again / "images/000004.jpg").read_bytes() == (tmp_path / "images/000004.jpg").read_bytes()


def test_every_picture_is_used_before_one_is_used_again(tmp_path: Path) -> None:
    """Five plain pictures, ten mosaics of one; blue stays blue."""
    for level in range(5):
        cv2.imwrite(str(tmp_path / f"{level}.png"), np.full((8, 8, 3), (50 * level, 0, 0), np.uint8))
    listed = [{"id": level, "file_name": f"{level}.png", "height": 8, "width": 8} for level in range(5)]
    (tmp_path / "a.json").write_text(json.dumps({"images": listed, "categories": [{"id": 1, "name": "x"}], "annotations": []}))
    write_mosaics(str(tmp_path / "a.json"), str(tmp_path), tmp_path / "out", count=10, seed=0, size=(8, 8), tiles=(1,))
    levels = [round(cv2.imread(str(tmp_path / f"out/images/{n:06d}.jpg"))[..., 0].mean() / 50) for n in range(10)]
    assert sorted(levels[:5]) == sorted(levels[5:]) == list(range(5))
    assert levels[:5] != levels[5:], "in another order"


def test_what_is_no_ground_for_mosaics(tmp_path: Path) -> None:
    source = json.loads((tiny.data_root() / "train.json").read_text())

    def write(data: dict, **options: object) -> None:
        (tmp_path / "a.json").write_text(json.dumps(data))
        write_mosaics(str(tmp_path / "a.json"), str(tiny.data_root() / "train"), tmp_path / "out", **{"count": 1, "seed": 0, **options})

    with pytest.raises(DatasetError, match=r"a\.json has no images"):
        write({**source, "images": [], "annotations": []})
    for options in ({"count": 0}, {"size": (2, 96)}):
        with pytest.raises(DatasetError, match="count must be 1 or more, height and width 3 or more"):
            write(source, **options)
    larger = [{**image, "height": image["height"] + 1} for image in source["images"]]
    with pytest.raises(DatasetError, match=r"pixels .* but the data set's json says"):
        write({**source, "images": larger, "annotations": []})
    assert not (tmp_path / "out").exists()


def test_categories_keep_their_names(tmp_path: Path) -> None:
    """Ids of the source with gaps, not in order."""
    source = json.loads((tiny.data_root() / "train.json").read_text())
    source["categories"] = [{"id": 90, "name": "late"}, {"id": 7, "name": "early"}]
    for annotation in source["annotations"]:
        annotation["category_id"] = 90
    source["annotations"][0]["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(source))
    write_mosaics(str(tmp_path / "a.json"), str(tiny.data_root() / "train"), tmp_path / "out", count=2, seed=0, size=(64, 64))
    made = json.loads((tmp_path / "out/train.json").read_text())
    assert {annotation["category_id"] for annotation in made["annotations"]} == {90}
    assert all(annotation["iscrowd"] == 0 for annotation in made["annotations"])
