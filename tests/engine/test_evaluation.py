"""Evaluation end to end: the numbers are those of the files that were written, and the files hold what the model finds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from solotrack.config import ConfigError
from solotrack.data.annotation_file import DatasetError
from solotrack.data.catalog import dataset_metadata, load_dataset
from solotrack.data.frames import read_frame_image
from solotrack.data.intensity import Stretch
from solotrack.engine.evaluation import evaluate, evaluate_images, evaluate_videos
from solotrack.engine.streaming import VideoTracker
from solotrack.evaluation.ytvis import evaluate_ytvis
from tests import tiny


def trained(folder: Path, *test_sets: str) -> tuple[CfgNode, torch.nn.Module]:
    cfg, model = tiny.trained()
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TEST = list(test_sets)
    return cfg, model


def test_images(tmp_path: Path) -> None:
    cfg, model = trained(tmp_path)
    scores = evaluate_images(cfg, model, "tiny_train")
    assert scores.keys() == {"bbox", "segm"} and scores["segm"]["AP50"] > 5

    written = tmp_path / "inference" / "tiny_train" / "coco_instances_results.json"
    truth = COCO(str(tiny.data_root() / "train.json"))
    for kind in ("bbox", "segm"):
        scorer = COCOeval(truth, truth.loadRes(str(written)), kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        assert scores[kind]["AP"] == pytest.approx(100 * scorer.stats[0]) and scores[kind]["AP50"] == pytest.approx(100 * scorer.stats[1])

    record = load_dataset("tiny_train")[3]
    image = torch.from_numpy(read_frame_image(record["file_name"], "RGB").transpose(2, 0, 1).copy())
    with torch.no_grad():
        found = model([{"image": image, "height": 64, "width": 64}])[0]["instances"]
    mine = [x for x in json.loads(written.read_text()) if x["image_id"] == record["image_id"]]
    assert len(mine) == len(found) > 0
    for x, mask, score, label in zip(mine, found.pred_masks, found.scores, found.pred_classes, strict=True):
        assert (mask_util.decode(x["segmentation"]).astype(bool) != mask.numpy()).sum() <= 2  # batches may round a pixel another way
        assert x["score"] == pytest.approx(score.item(), abs=1e-4) and x["category_id"] == label + 1


@pytest.fixture(scope="module")
def still_videos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of videos whose frames are training images, each shown twice: the model knows their objects."""
    path = tmp_path_factory.mktemp("still") / "still.json"
    data = json.loads((tiny.data_root() / "train.json").read_text())
    videos = [
        {"id": x["id"], "file_names": [x["file_name"]] * 2, "height": x["height"], "width": x["width"], "length": 2}
        for x in data["images"][:12]
    ]
    tracks = [
        {"id": a["id"], "video_id": a["image_id"], "category_id": a["category_id"], "iscrowd": 0}
        | {"segmentations": [a["segmentation"]] * 2, "areas": [a["area"]] * 2}
        for a in data["annotations"]
        if a["image_id"] <= 12
    ]
    path.write_text(json.dumps({"videos": videos, "annotations": tracks, "categories": data["categories"]}))
    tiny.config({"DATASETS.CUSTOM.VIDEOS": [["still_videos", str(path), str(tiny.data_root() / "train")]]})
    return "still_videos"


def test_videos(tmp_path: Path, still_videos: str) -> None:
    cfg, model = trained(tmp_path)
    scores = evaluate_videos(cfg, model, still_videos)["segm"]
    written = json.loads((tmp_path / "inference" / still_videos / "results.json").read_text())
    expected = evaluate_ytvis(json.loads(Path(dataset_metadata(still_videos).json_file).read_text()), written).stats
    assert expected["AP50"] > 0.02
    for key, value in expected.items():
        assert scores[key] == pytest.approx(100 * value if value >= 0 else math.nan, nan_ok=True)
    tracker = VideoTracker.from_config(cfg, model, still_videos).eval()
    assert [track for video in load_dataset(still_videos) for track in tracker([video])[0]] == written


def test_one_data_set_or_several(tmp_path: Path) -> None:
    cfg, model = trained(tmp_path / "both", "tiny_val", "tiny_test")
    both = evaluate(cfg, model)
    assert list(both) == ["tiny_val", "tiny_test"]
    assert both["tiny_val"].keys() == {"bbox", "segm"} and both["tiny_test"].keys() == {"segm"}
    for name in both:
        cfg, model = trained(tmp_path / "one", name)
        one = evaluate(cfg, model)
        assert one["segm"] == pytest.approx(both[name]["segm"], nan_ok=True)


def test_the_model_is_left_in_its_mode(tmp_path: Path) -> None:
    cfg, model = trained(tmp_path, "tiny_val", "tiny_test")
    model.train()
    evaluate(cfg, model)
    assert model.training and model.backbone.training
    model.eval()


def test_a_model_that_went_on_from_video_to_video_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that scores itself goes on from its own weights."""
    adapt = {"MODEL.SOLO_TRACK.VIDEO.ENABLED": True, "MODEL.SOLO_TRACK.VIDEO.NODE_SCORE": 0.0, "TTA.ENABLED": True, "TTA.LR": 0.1}
    cfg = tiny.config(tiny.detect_everything() | adapt | {"TTA.MODE": "continual", "DATASETS.TEST": ["tiny_test"]})
    cfg.OUTPUT_DIR = str(tmp_path)
    model, changes = tiny.model(cfg, spread=0.3).train(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    track = VideoTracker.track

    def spy(self: VideoTracker, *args) -> list[dict]:
        tracks = track(self, *args)
        changes.append([name for name, value in model.state_dict().items() if not torch.equal(value, before[name])])
        return tracks

    monkeypatch.setattr(VideoTracker, "track", spy)
    evaluate(cfg, model)
    assert len(changes) == tiny.VIDEOS and all(changes), "it is adapted in between"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_a_model_that_finds_nothing(tmp_path: Path) -> None:
    cfg, _ = trained(tmp_path, "tiny_val", "tiny_test")
    blind = tiny.model(cfg)
    results = evaluate(cfg, blind)
    assert math.isnan(results["tiny_val"]["segm"]["AP"]), "as Detectron2 has it"
    assert results["tiny_test"]["segm"]["AP"] == 0
    assert json.loads((tmp_path / "inference" / "tiny_test" / "results.json").read_text()) == []


def test_videos_without_annotations_give_files_for_the_server(tmp_path: Path) -> None:
    cfg, model = trained(tmp_path, "tiny_unlabelled")
    assert evaluate(cfg, model) == {}
    written = json.loads((tmp_path / "inference" / "tiny_unlabelled" / "results.json").read_text())
    assert written and (tmp_path / "inference" / "tiny_unlabelled" / "results.zip").exists()


def test_grey_levels_of_videos_are_stretched_as_in_training(tmp_path: Path) -> None:
    cfg, model = trained(tmp_path)
    frames = [20 + read_frame_image(path) // 8 for path in load_dataset("tiny_test")[0]["file_names"]]
    stretched = cfg.clone()
    stretched.INPUT.STRETCH.ENABLED = True
    bright = [Stretch.from_config(stretched)(frame) for frame in frames]
    tracks, expected = (VideoTracker.from_config(c, model).eval().track(x) for c, x in ((stretched, frames), (cfg, bright)))
    assert tracks == expected != VideoTracker.from_config(cfg, model).eval().track(frames)


def test_data_sets_that_cannot_be_evaluated(tmp_path: Path) -> None:
    cfg, model = trained(tmp_path, "voc_2007_test")
    with pytest.raises(ConfigError, match=r"voc_2007_test, which is registered neither as COCO images nor as YouTube-VIS videos"):
        evaluate(cfg, model)
    cfg.DATASETS.TEST = []
    with pytest.raises(ConfigError, match=r"nothing to evaluate: DATASETS\.TEST is empty"):
        evaluate(cfg, model)
    cfg.DATASETS.TEST = ["tiny_tset"]
    with pytest.raises(DatasetError, match=r"'tiny_tset'\. Did you mean tiny_test"):
        evaluate(cfg, model)
