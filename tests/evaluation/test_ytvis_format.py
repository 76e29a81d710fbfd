from __future__ import annotations

import gc
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from solotrack.evaluation.ytvis_format import YTVISFormatError, load_json, read_ground_truth, read_predictions
from solotrack.ops.rle import encode_masks

H, W = 6, 8
RLE = encode_masks(np.pad(np.ones((1, 3, 4), np.uint8), ((0, 0), (1, 2), (2, 2))))[0]  # 12 pixels
SMALLER = encode_masks(np.ones((1, 5, 8), np.uint8))[0]


def annotations(**changes) -> dict:
    """Videos 4 (3 frames) and 9 (1 frame), categories 2 and 5, one annotation."""
    data = {
        "videos": [
            {"id": 4, "height": H, "width": W, "file_names": ["a", "b", "c"]},
            {"id": 9, "height": H, "width": W, "file_names": ["a"]},
        ],
        "categories": [{"id": 2, "name": "dog"}, {"id": 5, "name": "cat"}],
        "annotations": [
            {"id": 1, "video_id": 4, "category_id": 2, "iscrowd": 0, "segmentations": [RLE, None, RLE], "areas": [12, None, 10]}
        ],
    }
    return {**data, **changes}


def prediction(**changes) -> dict:
    return {"video_id": 4, "category_id": 2, "score": 0.5, "segmentations": [RLE, None, RLE], **changes}


def without(record: dict, *keys: str) -> dict:
    return {key: value for key, value in record.items() if key not in keys}


TRUTH = read_ground_truth(annotations())


def faults_of(predictions, **options) -> str:
    with pytest.raises(YTVISFormatError) as error:
        read_predictions(predictions, TRUTH, "results.json", **options)
    return str(error.value)


# ---- predictions


def test_sound_predictions():
    tracks, warning = read_predictions([prediction(), prediction(video_id=9, category_id=5, score=1, segmentations=[None])], TRUTH)
    assert warning is None
    first, second = tracks
    assert (first.id, first.video_id, first.category_id, first.score, first.crowd) == (0, 4, 2, 0.5, False)
    assert first.areas.tolist() == [12, 0, 12]
    assert first.mean_area == 12
    assert second.areas.tolist() == [0]
    assert second.mean_area == 0


def test_no_predictions():
    assert read_predictions([], TRUTH) == ([], None)


def test_types_of_numpy_and_pycocotools_are_sound():
    rle = {"size": (H, W), "counts": RLE["counts"].encode()}
    tracks, _ = read_predictions([prediction(video_id=np.int64(4), score=np.float32(0.5), segmentations=[rle, None, {}])], TRUTH)
    assert tracks[0].areas.tolist() == [12, 0, 0]


def test_mean_area_leaves_out_empty_masks():
    empty = encode_masks(np.zeros((1, H, W), np.uint8))[0]
    full = encode_masks(np.ones((1, H, W), np.uint8))[0]
    assert read_predictions([prediction(segmentations=[empty, RLE, full])], TRUTH)[0][0].mean_area == (12 + H * W) / 2


@pytest.mark.parametrize("data", [{"results": []}, None, "x", 3])
def test_not_a_list(data):
    assert "results.json: must be a list of tracks" in faults_of(data)


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ([1, 2], "must be an object with 'video_id'"),
        (without(prediction(), "score", "segmentations"), "lacks 'score', 'segmentations'"),
        (prediction(video_id=5), "video_id 5 is no video"),
        (prediction(video_id="4"), "video_id must be an integer, not '4'"),
        (prediction(video_id=True), "video_id must be an integer, not True"),
        (prediction(video_id=[4]), "video_id must be an integer"),
        (prediction(category_id=3), "category_id 3 is no category"),
        (prediction(category_id=2.0), "category_id must be an integer, not 2.0"),
        (prediction(score=float("nan")), "score must be a finite number, not nan"),
        (prediction(score=float("-inf")), "score must be a finite number, not -inf"),
        (prediction(score="0.5"), "score must be a finite number, not '0.5'"),
        (prediction(score=None), "score must be a finite number, not None"),
        (prediction(segmentations=None), "segmentations must be a list"),
        (prediction(segmentations=[None, "abc", None]), r"segmentations[1]: must be null or an RLE"),
        (prediction(segmentations=[None, [[1, 2, 3, 4, 5, 6]], None]), r"segmentations[1]: must be null or an RLE"),
        (prediction(segmentations=[{"counts": "x"}, None, None]), r"segmentations[0]: must be null or an RLE with 'size'"),
        (prediction(segmentations=[None, None, {"size": [H, W], "counts": [40, 8]}]), r"segmentations[2]: counts must be a compressed"),
        (prediction(segmentations=[None, None, SMALLER]), r"segmentations[2]: size [5, 8] is not the video's [height, width] = [6, 8]"),
        (prediction(segmentations=[{**RLE, "size": [6.0, 8.0]}, None, None]), r"segmentations[0]: size [6.0, 8.0] is not"),
        (prediction(score=10**400), "score must be a finite number, not 1000"),
        (prediction(segmentations=[{**RLE, "size": "68"}, None, None]), r"segmentations[0]: size '68' is not"),
        (
            prediction(segmentations=[None, None, {**SMALLER, "size": [H, W]}]),
            r"segmentations[2]: broken RLE: its counts cover 40 pixels, not 6 x 8",
        ),
        (prediction(segmentations=[None, {**RLE, "counts": "T"}, None]), r"segmentations[1]: broken RLE: its counts are no RLE string"),
        (prediction(segmentations=[None, {**RLE, "counts": ""}, None]), r"segmentations[1]: broken RLE: its counts are no RLE string"),
        (prediction(segmentations=[None, {**RLE, "counts": RLE["counts"][:-1]}, None]), r"segmentations[1]: broken RLE"),
    ],
)
def test_each_fault_is_named_with_its_place(faulty, message):
    text = faults_of([prediction(), faulty, prediction()])
    assert text.startswith("results.json: faults in the predictions (1):\n  prediction 1: ")
    assert message in text


def test_all_faults_are_listed_at_once():
    broken = {**RLE, "counts": RLE["counts"][:-2]}
    text = faults_of(
        [
            prediction(video_id=77, category_id=88, score=None, segmentations=[SMALLER, 3, None]),
            prediction(score="high", segmentations=[broken, SMALLER, broken]),
            prediction(),
            without(prediction(), "video_id"),
        ]
    )
    assert "(9):" in text
    for part in (
        "video_id 77",
        "category_id 88",
        "not None",
        "[1]: must be",
        "'high'",
        "[0]: broken",
        "[1]: size",
        "[2]: broken",
        "'video_id'",
    ):
        assert part in text


def test_long_lists_of_faults_are_cut_and_counted():
    lines = faults_of([prediction(score=None) for _ in range(73)]).splitlines()
    assert lines[0].endswith("(73):")
    assert lines[50] == "  prediction 49: score must be a finite number, not None"
    assert lines[51:] == ["  ... and 23 more"]


def test_wrong_length_warns_unless_strict():
    short, long = prediction(segmentations=[RLE]), prediction(video_id=9)
    tracks, warning = read_predictions([short, prediction(), long], TRUTH, "results.json")
    assert [len(t.areas) for t in tracks] == [1, 3, 3]
    assert warning.splitlines() == [
        "results.json: tracks not as long as their video (2):",
        "  prediction 0: 1 segmentations for the 3 frames of video 4",
        "  prediction 2: 3 segmentations for the 1 frames of video 9",
    ]
    assert "prediction 2: 3 segmentations for the 1 frames of video 9" in faults_of([short, prediction(), long], strict=True)


# ---- ground truth


def test_sound_ground_truth():
    assert TRUTH.videos[4].length == 3
    assert TRUTH.categories == {2: "dog", 5: "cat"}
    (track,) = TRUTH.tracks
    assert (track.id, track.video_id, track.category_id, track.crowd) == (1, 4, 2, False)
    assert track.mean_area == 11  # of the file's numbers
    assert track.areas.tolist() == [12, 0, 12]  # of its masks


def changed(**changes) -> dict:
    return annotations(annotations=[{**annotations()["annotations"][0], **changes}])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "must be an object with 'videos'"),
        ({"annotations": []}, "lacks the lists 'videos', 'categories'"),
        (annotations(categories=None), "lacks the list 'categories'"),
        (without(annotations(), "annotations"), "send the results to the data set's server"),
        (annotations(annotations=None), "has no annotations"),
        (annotations(videos=[{"id": 4, "height": 3}]), "videos[0]: lacks 'width', 'file_names'"),
        (annotations(videos=[{"id": 4, "height": 0, "width": 3, "file_names": []}]), "height and width must be positive"),
        (annotations(videos=[{"id": 4, "height": 5, "width": 3, "file_names": 7}]), "file_names must be a list"),
        (annotations(videos=[{"id": "a", "height": 5, "width": 3, "file_names": []}]), "videos[0]: id must be an integer"),
        (annotations(videos=annotations()["videos"] * 2), "videos[2]: id 4 is taken already"),
        (annotations(categories=[{"id": 1}]), "categories[0]: lacks 'name'"),
        (annotations(annotations=annotations()["annotations"] * 2), "annotations[1]: id 1 is taken already"),
        (annotations(annotations=[3]), "annotations[0]: must be an object"),
        (annotations(annotations=[{}]), "annotations[0]: lacks 'id', 'video_id', 'category_id', 'segmentations', 'areas'"),
        (changed(video_id=3), "annotations[0]: video_id 3 is no video"),
        (changed(category_id=3), "category_id 3 is no category"),
        (changed(areas=None), "'areas' must be a list"),
        (changed(areas=[1, "2"]), "areas must be numbers or null"),
        (changed(segmentations=[{"size": [H, W], "counts": [10, 5]}]), "segmentations[0]: RLE counts cover 15 pixels"),
        (changed(segmentations=[None, SMALLER]), "segmentations[1]: RLE of size [5, 8]"),
        (changed(segmentations=[[[1, 2]]]), "segmentations[0]: each polygon needs three or more points"),
    ],
)
def test_faults_of_the_ground_truth(data, message):
    with pytest.raises(YTVISFormatError) as error:
        read_ground_truth(data, "gt.json")
    assert str(error.value).startswith("gt.json: ")
    assert message in str(error.value)


def test_ground_truth_without_annotations_serves_to_check_predictions():
    truth = read_ground_truth(annotations(annotations=None), require_annotations=False)
    assert truth.tracks == []
    assert len(read_predictions([prediction()], truth)[0]) == 1


# ---- files


class TestLoadJson:
    def test_reads(self, tmp_path: Path):
        path = tmp_path / "results.json"
        path.write_text('[{"a": 1}, null, "é"]', encoding="utf-8")
        assert load_json(path) == load_json(str(path)) == [{"a": 1}, None, "é"]
        assert gc.isenabled()

    def test_reads_results_json_of_a_zip(self, tmp_path: Path):
        path = tmp_path / "r.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("readme.txt", "x")
            archive.writestr("results.json", json.dumps([prediction()]))
        assert load_json(path) == [prediction()]

    def test_nan_is_left_for_the_validator_to_name(self, tmp_path: Path):
        path = tmp_path / "r.json"
        path.write_text(json.dumps([prediction(score=float("nan"))]))
        assert "score must be a finite number, not nan" in faults_of(load_json(path))

    def test_truncated_file_is_named_with_the_byte(self, tmp_path: Path):
        path = tmp_path / "cut.json"
        path.write_bytes('[{"é": 1}, {"b": '.encode())
        with pytest.raises(YTVISFormatError, match=r"cut\.json: not valid json at byte 18 of 18: Expecting value.*write it again"):
            load_json(path)
        assert gc.isenabled()

    def test_empty_file(self, tmp_path: Path):
        path = tmp_path / "empty.json"
        path.touch()
        with pytest.raises(YTVISFormatError, match="byte 0 of 0"):
            load_json(path)

    def test_bytes_that_are_no_text(self, tmp_path: Path):
        path = tmp_path / "r.json"
        path.write_bytes(b'["\xff"]')
        with pytest.raises(YTVISFormatError, match=r"r\.json: not UTF-8 text at byte 2 of 5"):
            load_json(path)

    def test_missing_file(self, tmp_path: Path):
        with pytest.raises(YTVISFormatError, match=r"none\.json: cannot be read: No such file"):
            load_json(tmp_path / "none.json")
        with pytest.raises(YTVISFormatError, match=r"none\.zip: cannot be read: No such file"):
            load_json(tmp_path / "none.zip")

    def test_damaged_zip(self, tmp_path: Path):
        path = tmp_path / "r.zip"
        path.write_bytes(b"PK nothing")
        with pytest.raises(YTVISFormatError, match=r"r\.zip: the zip archive cannot be read"):
            load_json(path)

    def test_zip_without_results(self, tmp_path: Path):
        path = tmp_path / "r.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("out/results.json", "[]")
        with pytest.raises(YTVISFormatError, match=r"needs results\.json at its top level; it holds out/results\.json"):
            load_json(path)
