from __future__ import annotations

import json
import logging

import cv2
import numpy as np
import pytest
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from solotrack.data.annotation_file import DatasetError, read_annotation_file, read_categories
from solotrack.data.coco import load_coco_instances

SQUARE = [[1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]]


def encode(mask: np.ndarray) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture
def content() -> dict:
    """Two images of 8 x 10 pixels, listed out of order; image 7 has no annotation."""
    mask = np.zeros((8, 10))
    mask[2:4, 3:7] = 1
    return {
        "images": [
            {"id": 9, "file_name": "b.png", "height": 8, "width": 10},
            {"id": 3, "file_name": "a.png", "height": 8, "width": 10},
            {"id": 7, "file_name": "b.png", "height": 8, "width": 10},
        ],
        "categories": [{"id": 40, "name": "fly"}, {"id": 2, "name": "ant"}, {"id": 5, "name": "bee"}],
        "annotations": [
            {"id": 30, "image_id": 3, "category_id": 40, "iscrowd": 0, "bbox": [1, 1, 4, 4], "segmentation": SQUARE},
            {"id": 10, "image_id": 9, "category_id": 2, "iscrowd": 0, "bbox": [3, 2, 4, 2], "segmentation": encode(mask)},
            {"id": 20, "image_id": 3, "category_id": 5, "iscrowd": 1, "segmentation": {"size": [8, 10], "counts": [16, 16, 48]}},
            {"id": 25, "image_id": 3, "category_id": 2, "segmentation": [[1.0, 1.0, 2.0, 2.0], *SQUARE]},
        ],
    }


@pytest.fixture
def write(tmp_path):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 10, 3), np.uint8))

    def _write(content: dict | str) -> str:
        path = tmp_path / "set.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return _write


def test_reads_polygons_and_both_kinds_of_rle(write, content, tmp_path):
    records = load_coco_instances(write(content), str(tmp_path))
    assert [(r["image_id"], r["height"], r["width"]) for r in records] == [(3, 8, 10), (7, 8, 10), (9, 8, 10)]
    assert records[0]["file_name"] == str(tmp_path / "a.png")
    first, empty, last = (r["annotations"] for r in records)
    assert [a["id"] for a in first] == [30, 20, 25]  # the file's order
    assert [a["category_id"] for a in first] == [2, 1, 0]  # ids 2, 5, 40 are classes 0, 1, 2
    assert [a["iscrowd"] for a in first] == [0, 1, 0]
    assert empty == []
    assert last[0]["category_id"] == 0
    assert first[2]["segmentation"] == SQUARE  # the polygon of two points is gone
    assert mask_util.decode(first[1]["segmentation"]).T.reshape(-1).nonzero()[0].tolist() == list(range(16, 32))
    assert mask_util.decode(last[0]["segmentation"]).sum() == 8
    # boxes that the file does not give
    assert first[1]["bbox"] == [2, 0, 2, 8]
    assert first[2]["bbox"] == [1, 1, 4, 4]
    assert all(a["bbox_mode"] == BoxMode.XYWH_ABS for a in first)


def test_category_map_makes_a_subset(write, content, tmp_path):
    records = load_coco_instances(write(content), str(tmp_path), {40: 0, 2: 1})
    assert [[(a["id"], a["category_id"]) for a in r["annotations"]] for r in records] == [[(30, 0), (25, 1)], [], [(10, 1)]]


def test_file_without_annotations(write, content, tmp_path):
    del content["annotations"]
    assert [r["annotations"] for r in load_coco_instances(write(content), str(tmp_path))] == [[], [], []]


def test_image_of_a_crowd_only_is_kept_as_such(write, content, tmp_path):
    content["annotations"] = [content["annotations"][2]]
    records = load_coco_instances(write(content), str(tmp_path))
    assert [[a["iscrowd"] for a in r["annotations"]] for r in records] == [[1], [], []]


def test_truncated_json_names_file_and_byte(write, content, tmp_path):
    content["categories"][0]["name"] = "müll"  # two bytes, one character
    text = json.dumps(content, ensure_ascii=False)
    cut = text.encode()[: len(text) - 40].decode()
    path = write(cut)
    with pytest.raises(DatasetError, match=rf"set\.json is not valid json: it breaks at byte (\d+) of {len(cut.encode())}") as caught:
        load_coco_instances(path, str(tmp_path))
    assert abs(int(str(caught.value).split("byte ")[1].split(" ")[0]) - len(cut.encode())) <= 1
    path = write('{"images": [ü}')  # broken after a character of two bytes
    with pytest.raises(DatasetError, match=r"breaks at byte 1[23] of 15"):
        read_annotation_file(path)
    with open(path, "wb") as file:
        file.write(b'{"images": ["\xff"]}')  # not UTF-8
    with pytest.raises(DatasetError, match="breaks at byte 13 of 17"):
        read_annotation_file(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=99), r"annotation 30 of image 3 \(a\.png\) has the category_id 99"),
        (lambda c: c["annotations"][1]["segmentation"].update(size=[10, 8]), r"annotation 10 of image 9 .* mask of \[10, 8\]"),
        (lambda c: c["annotations"][0].update(id=10), "more than one annotation with the id 10"),
        (lambda c: c["annotations"][3].pop("category_id"), r"annotation number 3 \(from 0\) has no 'category_id'"),
        (lambda c: c["images"][0].pop("height"), r"image number 0 \(from 0\) has no 'height'"),
        (lambda c: c["images"][0].update(id=3), "only 2 different image ids"),
        (lambda c: c["categories"][0].update(name="ant"), "more than one category with the name ant"),
        (lambda c: c["categories"][0].pop("name"), "category number 0 .* has no 'name'"),
        (lambda c: [a.pop("segmentation") for a in c["annotations"]], "None of the 4 annotations of .* has a mask"),
        (lambda c: c.update(videos=c.pop("images")), "has no list 'images' .*CUSTOM.VIDEOS"),
        (lambda c: c.update(annotations=None), "set.json has null for 'annotations'; it must be a list"),
        (lambda c: c.update(categories=None), "set.json has null for 'categories'; it must be a list"),
        (lambda c: c["images"].append(None), r"image number 3 \(from 0\) is null; it must be an object"),
        (lambda c: c["annotations"].append([1, 2]), r"annotation number 4 \(from 0\) is a list; it must be an object"),
        (lambda c: c["categories"].append("cow"), r"category number 3 \(from 0\) is text \('cow'\); it must be an object"),
        (lambda c: c["images"][1].update(file_name=None), r"image number 1 \(from 0\) has null for 'file_name'; it must be text"),
        (lambda c: c["images"][1].update(height="8"), r"image number 1 .* has text \('8'\) for 'height'; it must be a whole number"),
        (lambda c: c["images"][1].update(width=0), r"image number 1 .* is 0 x 8 pixels"),
        (lambda c: c["images"][1].update(id="3"), "ids are numbers and others whose ids are text"),
        (lambda c: c["categories"][1].update(id="2"), r"category number 1 .* for 'id'; it must be a whole number"),
        (lambda c: c["annotations"][0].update(image_id="3"), r"annotation number 0 .* has text \('3'\) for 'image_id'"),
        (lambda c: c["annotations"][0].update(category_id=[2]), r"annotation number 0 .* has a list for 'category_id'"),
        (lambda c: c["annotations"][1]["segmentation"].pop("size"), r"annotation 10 of image 9 .*its mask, an RLE, has no 'size'"),
        (lambda c: c["annotations"][1]["segmentation"].update(counts="o"), r"annotation 10 of image 9 .* broken mask: .* no run-length"),
        (lambda c: c["annotations"][1]["segmentation"].update(counts="01"), r"annotation 10 of image 9 .* cover 1 pixels, not 8 x 10"),
        (lambda c: c["annotations"][1]["segmentation"].update(counts=None), r"its mask, an RLE, has null for 'counts'"),
        (lambda c: c["annotations"][2]["segmentation"].update(counts=[16, -1, 65]), "annotation 20 of image 3 .* broken mask"),
        (lambda c: c["annotations"][2]["segmentation"].update(counts=[16]), "annotation 20 of image 3 .* cover 16 pixels"),
        (lambda c: c["annotations"][0].update(segmentation=SQUARE[0]), "annotation 30 of image 3 .* neither an RLE nor a list of polygons"),
        (
            lambda c: c["annotations"][0].update(segmentation=[["1", *SQUARE[0][1:]]]),
            "annotation 30 of .* nor a list of polygons .*of numbers",
        ),
        (lambda c: c["annotations"][0].update(segmentation=[[None, *SQUARE[0][1:]]]), "annotation 30 of .* nor a list of polygons"),
        (lambda c: c["annotations"][0].update(segmentation="mask.png"), "annotation 30 of .* nor a list of polygons"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1]), r"annotation 30 of .* has the bbox \[1, 1\]; it must be four numbers"),
        (
            lambda c: c["annotations"][0].update(segmentation=[[float("nan"), *SQUARE[0][1:]]]),
            "set.json is not valid json: it breaks at byte",
        ),
    ],
)
def test_faulty_content_is_named(write, content, tmp_path, change, message):
    change(content)
    with pytest.raises(DatasetError, match=message):
        load_coco_instances(write(content), str(tmp_path))


def test_category_map_that_the_file_cannot_fill(write, content, tmp_path):
    with pytest.raises(DatasetError, match=r"no categories with the ids \[77\]"):
        load_coco_instances(write(content), str(tmp_path), {2: 0, 77: 1})


def test_what_is_no_annotation_file(write):
    for text, kind in (("[]", "a list"), ("null", "null"), ("3", "a whole number")):
        with pytest.raises(DatasetError, match=rf"set\.json holds {kind}.*, not an object"):
            read_categories(write(text))


def test_ids_may_be_text(write, content, tmp_path):
    for image in content["images"]:
        image["id"] = f"i{image['id']}"
    for annotation in content["annotations"]:
        annotation.update(id=f"a{annotation['id']}", image_id=f"i{annotation['image_id']}")
    records = load_coco_instances(write(content), str(tmp_path))
    assert [(r["image_id"], [a["id"] for a in r["annotations"]]) for r in records] == [
        ("i3", ["a30", "a20", "a25"]),
        ("i7", []),
        ("i9", ["a10"]),
    ]


def test_missing_files(write, content, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*nothing\.json"):
        load_coco_instances(str(tmp_path / "nothing.json"), str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no folder .*elsewhere"):
        load_coco_instances(write(content), str(tmp_path / "elsewhere"))
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png, listed in .*set\.json"):
        load_coco_instances(write(content), str(tmp_path))


def test_strays_and_boxes_without_masks_are_reported(write, content, tmp_path, caplog):
    content["annotations"][0]["image_id"] = 1000
    del content["annotations"][1]["segmentation"]
    with caplog.at_level(logging.WARNING, logger="solotrack.data.coco"):
        records = load_coco_instances(write(content), str(tmp_path))
    assert sum(len(r["annotations"]) for r in records) == 2
    assert "1 of 4 annotations belong to no image" in caplog.text
    assert "left out 1 of 3 annotations" in caplog.text


def test_categories_are_read_again_when_the_file_changes(write, content):
    path = write(content)
    assert [c["name"] for c in read_categories(path)] == ["ant", "bee", "fly"]
    content["categories"].append({"id": 50, "name": "wasp"})
    write(content)
    assert [c["name"] for c in read_categories(path)] == ["ant", "bee", "fly", "wasp"]
    del content["categories"]
    assert read_categories(write(content)) == []


def test_agrees_with_detectron2(shared_dir):
    from detectron2.data.datasets.coco import load_coco_json

    folder = shared_dir / "data" / "nuclei"
    if not folder.is_dir():
        pytest.skip("the nuclei images are not on this machine")
    ours = load_coco_instances(str(folder / "val.json"), str(folder))
    theirs = load_coco_json(str(folder / "val.json"), str(folder), "test_coco_nuclei_val")
    assert len(ours) == 54 and sum(len(r["annotations"]) for r in ours) == 1667
    for our, their in zip(ours, theirs, strict=True):
        assert {**our, "annotations": [{k: v for k, v in a.items() if k != "id"} for a in our["annotations"]]} == their
