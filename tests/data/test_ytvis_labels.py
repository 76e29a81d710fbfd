"""Reading the annotations of videos, for baselines that learn from them."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pycocotools.mask as mask_util
import pytest

from solotrack.data.annotation_file import DatasetError
from solotrack.data.ytvis_labels import load_labelled_frames
from solotrack.ops.rle import decode_rle
from tests import tiny

H, W = 6, 8


def mask(x: int) -> np.ndarray:
    result = np.zeros((H, W), np.uint8)
    result[1:4, x : x + 2] = 1
    return result


def compressed(x: int) -> dict:
    rle = mask_util.encode(np.asfortranarray(mask(x)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(x: int) -> dict:
    flat = mask(x).T.reshape(-1)
    edges = [*np.flatnonzero(np.diff(np.concatenate(([0], flat)))).tolist(), H * W]
    return {"size": [H, W], "counts": np.diff([0, *edges]).tolist()}


@pytest.fixture
def content() -> dict:
    """Video 5: track 3 in frames 0 and 2, track 9 a crowd in frames 1 and 2. Video 2: track 4, as polygons. Video 7: nothing."""
    polygon = [[1, 1, 3, 1, 3, 4, 1, 4]]

    def track(number: int, video: int, category: int, segmentations: list, crowd: int = 0) -> dict:
        return {"id": number, "video_id": video, "category_id": category, "iscrowd": crowd, "segmentations": segmentations}

    return {
        "videos": [
            {"id": i, "height": H, "width": W, "length": n, "file_names": [f"v{i}/{t}.jpg" for t in range(n)]}
            for i, n in ((5, 3), (2, 1), (7, 1))
        ],
        "categories": [{"id": 30, "name": "bee"}, {"id": 10, "name": "ant"}],
        "annotations": [
            track(9, 5, 10, [None, compressed(3), compressed(4)], crowd=1),
            track(3, 5, 30, [compressed(0), None, uncompressed(2)]),
            track(4, 2, 10, [polygon]),
        ],
    }


@pytest.fixture
def read(tmp_path, content) -> Callable[[], list[dict]]:
    for video in content["videos"]:
        for name in video["file_names"]:
            path = tmp_path / "frames" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def _read() -> list[dict]:
        (tmp_path / "set.json").write_text(json.dumps(content))
        return load_labelled_frames(str(tmp_path / "set.json"), str(tmp_path / "frames"))

    return _read


def test_frames_with_objects(read, tmp_path) -> None:
    frames = read()
    assert [(f["video_id"], f["frame"]) for f in frames] == [(5, 0), (5, 2), (2, 0)], "crowds alone teach nothing"
    assert frames[1]["file_name"] == str(tmp_path / "frames" / "v5" / "2.jpg")
    assert all((f["height"], f["width"]) == (H, W) for f in frames)
    assert [[(a["id"], a["category_id"], a["iscrowd"]) for a in f["annotations"]] for f in frames] == [
        [(3, 1, 0)],
        [(9, 0, 1), (3, 1, 0)],
        [(4, 0, 0)],
    ]
    decoded = [[decode_rle(a["segmentation"], H, W) for a in f["annotations"]] for f in frames]
    for masks, places in zip(decoded, ([0], [4, 2], [1]), strict=True):
        for one, x in zip(masks, places, strict=True):
            np.testing.assert_array_equal(one, mask(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "has no list 'annotations'"),
        (lambda c: c["annotations"].clear(), "has no frame with an object"),
        (lambda c: c["annotations"][1].update(video_id=6), "annotation 3 belongs to video 6, which the file does not have"),
        (lambda c: c["annotations"][1].update(category_id=1), r"annotation 3 has the category_id 1, .* categories \[10, 30\]"),
        (lambda c: c["annotations"][1].update(id=9), "annotation 9: this id occurs twice"),
        (lambda c: c["annotations"][1].pop("segmentations"), r"annotation number 1 \(from 0\) has no 'segmentations'"),
        (lambda c: c["annotations"][1]["segmentations"].pop(), "annotation 3 has 2 segmentations but video 5 has 3 frames"),
        (lambda c: c["annotations"][1]["segmentations"][0].update(size=[W, H]), r"annotation 3, frame 0, has a mask of \[8, 6\] pixels"),
        (lambda c: c["annotations"][1]["segmentations"][0].update(counts="a"), "annotation 3, frame 0, has a broken mask"),
        (lambda c: c["annotations"][1]["segmentations"][2]["counts"].append(1), "annotation 3, frame 2, has a broken mask"),
        (lambda c: c["annotations"][1]["segmentations"].__setitem__(0, 5), "annotation 3, frame 0, has a mask that is neither"),
        (lambda c: c["videos"][0].update(length=4), "video 5 has the length 4 but 3 file_names"),
    ],
)
def test_faulty_content_is_named(read, content, change, message) -> None:
    change(content)
    with pytest.raises(DatasetError, match=message):
        read()


def test_missing_frames_are_named(read, content, tmp_path) -> None:
    (tmp_path / "frames" / "v5" / "2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"v5/2\.jpg, listed in .*set\.json"):
        read()


def test_reads_synthetic_videos() -> None:
    root = tiny.data_root()
    data = json.loads((root / "test.json").read_text())
    frames = load_labelled_frames(str(root / "test.json"), str(root / "videos" / "test"))
    masks = sum(s is not None for a in data["annotations"] for s in a["segmentations"])
    assert sum(len(f["annotations"]) for f in frames) == masks > 0
    assert len(frames) <= tiny.VIDEOS * tiny.FRAMES
