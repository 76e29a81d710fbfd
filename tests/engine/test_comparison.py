"""Trackers are compared on the very same detections."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from solotrack.config import ConfigError
from solotrack.data.annotation_file import DatasetError
from solotrack.data.catalog import register_custom
from solotrack.engine.comparison import TRACKERS, compare_trackers
from solotrack.engine.evaluation import evaluate_videos
from solotrack.evaluation.ytvis_format import YTVISFormatError
from tests import tiny


@pytest.fixture
def setup() -> tuple[CfgNode, torch.nn.Module]:
    cfg, model = tiny.trained()
    cfg = cfg.clone()
    cfg.TRACKER_HEADS.SCORE_THRESH = 0.0  # many detections, so that trackers differ
    cfg.TRACKER_HEADS.MAX_PER_FRAME = 30
    return cfg, model


def results(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.rglob("results.json")}


def test_a_tracker_does_alone_as_in_company(setup: tuple[CfgNode, torch.nn.Module], tmp_path: Path) -> None:
    cfg, model = setup
    calls = []
    handle = model.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    together = compare_trackers(cfg, model, "tiny_test", str(tmp_path / "all"))
    assert sum(calls) == tiny.VIDEOS * tiny.FRAMES, "the network sees every frame once"
    handle.remove()
    assert together.keys() == TRACKERS.keys()
    written = results(tmp_path / "all")
    assert len(written) == len(set(written.values())) == len(TRACKERS), "every tracker has files of its own and links in its own way"
    for name, overrides in TRACKERS.items():
        alone = compare_trackers(cfg, model, "tiny_test", str(tmp_path / "one"), {name: overrides})
        assert alone == {name: pytest.approx(together[name], nan_ok=True)}
        assert results(tmp_path / "one")[name.replace(" ", "_")] == written[name.replace(" ", "_")]


def test_a_row_is_what_the_evaluation_of_its_config_gives(setup: tuple[CfgNode, torch.nn.Module], tmp_path: Path) -> None:
    cfg, model = setup
    rows = compare_trackers(cfg, model, "tiny_test", str(tmp_path))
    for name, overrides in TRACKERS.items():
        variant = cfg.clone()
        variant.merge_from_list(list(overrides))
        variant.OUTPUT_DIR = str(tmp_path / "evaluation")
        assert rows[name] == pytest.approx(evaluate_videos(variant, model, "tiny_test")["segm"], nan_ok=True)


def test_cues_are_the_row_s_and_not_the_config_s(setup: tuple[CfgNode, torch.nn.Module], tmp_path: Path) -> None:
    """A baseline's config has its post-processing switched on; the row without must be without all the same."""
    cfg, model = setup
    only = {name: TRACKERS[name] for name in ("SOLO-Track", "SOLO-Track + cues")}
    cfg.TRACKER_HEADS.PROTO_UPDATE = "last"
    compare_trackers(cfg, model, "tiny_test", str(tmp_path / "off"), only)
    cfg.TRACKER_HEADS.CUES.ENABLED = True
    compare_trackers(cfg, model, "tiny_test", str(tmp_path / "on"), only)
    assert results(tmp_path / "on") == results(tmp_path / "off")
    assert len(set(results(tmp_path / "on").values())) == 2


def test_tubes_of_boxes(setup: tuple[CfgNode, torch.nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg, model = setup
    cfg.TEST.BOX_TUBES = True
    cfg.OUTPUT_DIR = str(tmp_path)
    only = {"IoU": TRACKERS["IoU"]}
    for run in (lambda: compare_trackers(cfg, model, "tiny_test", str(tmp_path), only), lambda: evaluate_videos(cfg, model, "tiny_test")):
        caplog.clear()
        with caplog.at_level("INFO"):
            run()
        assert "YouTube-VIS results on tiny_test by boxes" in caplog.text


def test_the_calibrated_null_logit_is_used(setup: tuple[CfgNode, torch.nn.Module], tmp_path: Path) -> None:
    cfg, model = setup
    only = {"SOLO-Track": TRACKERS["SOLO-Track"]}
    model.embedding_head.null_logit.fill_(1e4)  # everything is new in every frame
    compare_trackers(cfg, model, "tiny_test", str(tmp_path / "high"), only)
    model.embedding_head.null_logit.fill_(float("nan"))
    compare_trackers(cfg, model, "tiny_test", str(tmp_path / "none"), only)
    count = {name: results(tmp_path / name)["SOLO-Track"].count("video_id") for name in ("high", "none")}
    assert count["high"] > count["none"]


def test_what_cannot_be_compared(setup: tuple[CfgNode, torch.nn.Module], tmp_path: Path) -> None:
    cfg, model = setup
    with pytest.raises(ConfigError, match=r"TRACKER_HEADS\.IOU\.MIN is 2\.0"):
        compare_trackers(cfg, model, "tiny_test", str(tmp_path), {"x": ("TRACKER_HEADS.IOU.MIN", "2.0")})
    with pytest.raises(DatasetError, match=r"unlabelled\.json has no list 'annotations'"):
        compare_trackers(cfg, model, "tiny_unlabelled", str(tmp_path))
    with pytest.raises(DatasetError, match=r"val\.json has no list 'videos'.*It lists images"):
        compare_trackers(cfg, model, "tiny_val", str(tmp_path))
    with pytest.raises(DatasetError, match=r"Did you mean tiny_test"):
        compare_trackers(cfg, model, "tiny_tset", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_faulty_annotations_and_output_show_before_the_network_runs(setup: tuple[CfgNode, torch.nn.Module], tmp_path: Path) -> None:
    cfg, model = setup
    handle = model.register_forward_pre_hook(lambda module, inputs: pytest.fail("the network ran"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        compare_trackers(cfg, model, "tiny_test", str(tmp_path / "file" / "out"))
    data = json.loads((tiny.data_root() / "test.json").read_text())
    data["annotations"][1]["category_id"] = 77
    (tmp_path / "faulty.json").write_text(json.dumps(data))
    cfg.DATASETS.CUSTOM.VIDEOS = [["tiny_faulty", str(tmp_path / "faulty.json"), str(tiny.data_root() / "videos" / "test")]]
    register_custom(cfg)
    with pytest.raises(YTVISFormatError, match=r"faulty\.json: .*\n.*annotations\[1\]: category_id 77 is no category"):
        compare_trackers(cfg, model, "tiny_faulty", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    handle.remove()


def test_the_row_without_cues_has_none(setup: tuple[CfgNode, torch.nn.Module], tmp_path: Path) -> None:
    """Whatever the config says: those of the baselines have cues."""
    cfg, model = setup
    for cues in (False, True):
        cfg.TRACKER_HEADS.CUES.ENABLED = cues
        compare_trackers(cfg, model, "tiny_test", str(tmp_path / str(cues)), {"SOLO-Track": TRACKERS["SOLO-Track"]})
    assert results(tmp_path / "False") == results(tmp_path / "True")
