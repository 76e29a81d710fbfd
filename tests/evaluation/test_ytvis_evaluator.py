from __future__ import annotations

import json
import logging
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm

from solotrack.evaluation.boxes import with_box_masks, with_box_truth
from solotrack.evaluation.ytvis import evaluate_ytvis, score_tracks
from solotrack.evaluation.ytvis_evaluator import YTVISEvaluator
from solotrack.evaluation.ytvis_format import YTVISFormatError, load_json, read_ground_truth, read_predictions
from solotrack.ops.rle import encode_masks

H, W, T = 9, 11, 3
NAME = "evaluator_test_videos"


def rles(seed: int) -> list[dict | None]:
    masks = np.random.default_rng(seed).random((T, H, W)) < 0.5
    return [*encode_masks(masks)[:-1], None]


def video(video_id: int) -> dict:
    return {"video_id": video_id, "file_names": ["f.jpg"] * T, "height": H, "width": W, "length": T}


def track(video_id: int, category_id: int, score: float, seed: int) -> dict:
    return {"video_id": video_id, "category_id": category_id, "score": score, "segmentations": rles(seed)}


def annotation(id: int, video_id: int, category_id: int, seed: int) -> dict:
    areas = [None if rle is None else 50 for rle in rles(seed)]
    return {"id": id, "video_id": video_id, "category_id": category_id, "iscrowd": 0, "segmentations": rles(seed), "areas": areas}


ANNOTATIONS = [annotation(1, 5, 2, 0), annotation(2, 5, 3, 1), annotation(3, 8, 2, 2), annotation(4, 6, 3, 3)]
TRACKS = {
    5: [track(5, 2, 0.9, 0), track(5, 2, 0.8, 7), track(5, 3, 0.4, 1)],
    8: [track(8, 2, 0.5, 8), track(8, 2, 0.5, 2)],
    6: [track(6, 2, 0.95, 9)],
}


@pytest.fixture
def json_file(tmp_path: Path):
    path = tmp_path / "annotations.json"
    write_annotations(path, ANNOTATIONS)
    MetadataCatalog.get(NAME).json_file = str(path)
    yield path
    MetadataCatalog.remove(NAME)


def write_annotations(path: Path, annotations: list[dict] | None) -> None:
    videos = [{"id": v, "height": H, "width": W, "length": T, "file_names": ["f.jpg"] * T} for v in (8, 5, 6)]
    categories = [{"id": 2, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 4, "name": "owl"}]
    path.write_text(json.dumps({"videos": videos, "categories": categories, "annotations": annotations}))


def run(evaluator: YTVISEvaluator, video_ids=(5, 8, 6)) -> dict:
    for v in video_ids:
        evaluator.process([video(v)], [TRACKS[v]])
    return evaluator.evaluate()


def same(a: dict, b: dict) -> bool:
    return list(a["segm"]) == list(b["segm"]) and np.array_equal(list(a["segm"].values()), list(b["segm"].values()), equal_nan=True)


def test_percent_of_the_metric(json_file, caplog):
    with caplog.at_level(logging.INFO):
        results = run(YTVISEvaluator(NAME))
    expected = evaluate_ytvis(load_json(json_file), [t for v in TRACKS for t in TRACKS[v]])
    assert 0 < expected.stats["AP"] < 1
    assert list(results) == ["segm"]
    scores = results["segm"]
    assert list(scores) == [*expected.stats, "AP-dog", "AP-cat", "AP-owl"]
    for name, value in expected.stats.items():
        assert (math.isnan(scores[name]) and value == -1) or scores[name] == 100 * value
    assert scores["AP-dog"] == 100 * expected.per_category["dog"]["AP"]
    assert math.isnan(scores["AP-owl"])
    assert f"{scores['AP']:.2f}" in caplog.text
    assert "| dog" in caplog.text


def test_works_with_detectron2s_loop(json_file):
    class Tracker(torch.nn.Module):
        def forward(self, videos):
            return [TRACKS[v["video_id"]] for v in videos]

    loader = [[video(5), video(8)], [video(6)]]
    assert same(inference_on_dataset(Tracker(), loader, YTVISEvaluator(NAME)), run(YTVISEvaluator(NAME)))


def test_files_for_the_server(json_file, tmp_path):
    out = tmp_path / "new" / "out"
    run(YTVISEvaluator(NAME, str(out)))
    assert sorted(p.name for p in out.iterdir()) == ["results.json", "results.zip"]
    expected = [t for v in (5, 6, 8) for t in TRACKS[v]]
    assert json.loads((out / "results.json").read_text()) == expected
    with zipfile.ZipFile(out / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
    assert load_json(out / "results.zip") == expected


def test_numbers_of_other_libraries_become_json(json_file, tmp_path):
    evaluator = YTVISEvaluator(NAME, str(tmp_path))
    rle = {"size": np.array([H, W]), "counts": rles(0)[0]["counts"].encode()}
    odd = {"video_id": np.int64(5), "category_id": torch.tensor(2), "score": torch.tensor(0.5), "segmentations": [rle, None, None]}
    evaluator.process([video(5)], [[odd]])
    evaluator.evaluate()
    plain = {"video_id": 5, "category_id": 2, "score": 0.5, "segmentations": [rles(0)[0], None, None]}
    assert json.loads((tmp_path / "results.json").read_text()) == [plain]


def test_a_video_counts_once_over_processes(json_file, tmp_path, monkeypatch):
    first, second = YTVISEvaluator(NAME, str(tmp_path)), YTVISEvaluator(NAME)
    for evaluator, ids in ((first, [8, 5]), (second, [6, 5])):
        for v in ids:
            evaluator.process([video(v)], [TRACKS[v]])
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [data, second._tracks])
    both = first.evaluate()
    monkeypatch.undo()
    assert same(both, run(YTVISEvaluator(NAME)))
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == [t for v in (5, 6, 8) for t in TRACKS[v]]


def test_other_processes_return_nothing(json_file, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "gather", lambda data, dst=0: [])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert run(YTVISEvaluator(NAME, str(tmp_path / "out"))) == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("annotations", [None, []])
def test_without_annotations_the_zip_is_for_the_server(json_file, tmp_path, caplog, annotations):
    write_annotations(json_file, annotations)
    with caplog.at_level(logging.INFO):
        assert run(YTVISEvaluator(NAME, str(tmp_path / "out"))) == {}
    assert str(tmp_path / "out" / "results.zip") in caplog.text
    assert (tmp_path / "out" / "results.zip").exists()


@pytest.mark.parametrize(("subset", "videos"), [("any", [5, 8]), ("all", [5, 6, 8])])
def test_category_subset_scores_its_videos(json_file, subset, videos):
    """Video 6 shows no dog, but one is predicted there, first of all."""
    results = run(YTVISEvaluator(NAME, category_ids=[2], video_subset=subset))["segm"]
    expected = evaluate_ytvis(load_json(json_file), [t for v in videos for t in TRACKS[v]], category_ids=[2])
    assert results["AP"] == 100 * expected.stats["AP"]
    assert "AP-cat" not in results
    other = run(YTVISEvaluator(NAME, category_ids=[2], video_subset="any" if subset == "all" else "all"))["segm"]
    assert (results["AP"] > other["AP"]) == (subset == "any")


def test_boxes_are_scored_in_place_of_masks(json_file, tmp_path):
    results = run(YTVISEvaluator(NAME, str(tmp_path / "out"), boxes=True))["segm"]
    truth = read_ground_truth(load_json(json_file))
    tracks, _ = read_predictions([t for v in TRACKS for t in TRACKS[v]], truth)
    assert results["AP"] == 100 * score_tracks(with_box_truth(truth), with_box_masks(tracks)).stats["AP"]
    assert results["AP"] > run(YTVISEvaluator(NAME))["segm"]["AP"], "random masks share few pixels, their boxes most"
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == [t for v in (5, 6, 8) for t in TRACKS[v]]


def test_reset_forgets(json_file):
    evaluator = YTVISEvaluator(NAME)
    run(evaluator)
    evaluator.reset()
    assert evaluator.evaluate()["segm"]["AP"] == 0


def test_unprocessed_videos_are_told(json_file, caplog):
    run(YTVISEvaluator(NAME), [8])
    assert "2 of the 3 videos to score were not processed" in caplog.text


def test_faulty_tracks_are_an_error(json_file):
    evaluator = YTVISEvaluator(NAME)
    evaluator.process([video(5)], [[track(99, 2, 0.5, 0)]])
    with pytest.raises(YTVISFormatError, match="video_id 99 is no video"):
        evaluator.evaluate()


def test_wrong_length_is_a_warning(json_file, caplog):
    evaluator = YTVISEvaluator(NAME)
    evaluator.process([video(5)], [[{**track(5, 2, 0.5, 0), "segmentations": rles(0)[:2]}]])
    assert evaluator.evaluate()["segm"]["AP-dog"] > 0
    assert "2 segmentations for the 3 frames" in caplog.text


def test_wrong_use_is_an_error(json_file):
    with pytest.raises(ValueError, match="'any' or 'all'"):
        YTVISEvaluator(NAME, video_subset="some")
    with pytest.raises(ValueError, match="no json_file"):
        YTVISEvaluator("evaluator_test_unknown")
    MetadataCatalog.remove("evaluator_test_unknown")
