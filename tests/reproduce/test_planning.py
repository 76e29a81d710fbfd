"""Plans of tables: every command is understood, comes after what it needs, and is shared by all tables that want it."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from functools import cache
from pathlib import Path

import pytest

from solotrack.config import load_config
from solotrack.engine.plan import Stage
from solotrack.reproduce.planning import Run, cell_folder, measurements, table_plan
from solotrack.reproduce.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = Run("out", (0, 1), data_seed=7, datasets="sets", overrides=("SOLVER.MAX_ITER", "9", "INPUT.CLIPS.FRAMES", "2"))


@cache
def plan(data: str, name: str, run: Run = RUN) -> dict[str, Stage]:
    return {stage.name: stage for stage in table_plan(TABLES[data, name], run)}


@cache
def tool_parser(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_plan", ROOT / "tools" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parser()


def understood(stage: Stage) -> Namespace:
    """A command's arguments, as its tool reads them."""
    return tool_parser(Path(stage.command[1]).stem).parse_args(stage.command[2:])


EVERY = pytest.mark.parametrize(("data", "name"), TABLES)


@EVERY
def test_stages_are_in_order_and_write_files_of_their_own(data: str, name: str) -> None:
    before: set[str] = set()
    outputs: list[str] = []
    for stage in plan(data, name).values():
        assert before.issuperset(stage.needs)
        before.add(stage.name)
        outputs += stage.outputs
    assert len(set(outputs)) == len(outputs) and all(path.startswith("out/") for path in outputs)
    table = TABLES[data, name]
    assert {m for row in table.rows for seed in RUN.seeds for m in measurements(table, row, seed)} <= before


@EVERY
def test_commands_are_understood(data: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for stage in plan(data, name).values():
        if "/seed1/" in stage.name:
            continue  # seed 0 has the same words
        args = understood(stage)
        if stage.name.startswith("data/"):
            assert {str(args.output)} == {str(Path(path).parent) for path in stage.outputs}
            continue
        assert args.config_file in {path for item in stage.inputs for path in item.paths}
        if Path(args.config_file).exists():  # else the stage says that it needs it
            cfg = load_config(args.config_file, args.opts)
            if stage.name.endswith("/train"):
                assert [f"{cfg.OUTPUT_DIR}/model_final.pth"] == list(stage.outputs) and cfg.SEED == 0 and not cfg.DATASETS.TEST
        else:
            assert "sipmask" in args.config_file


@pytest.mark.parametrize("data", ["synthetic", "coco-ytvis"])
def test_tables_share_trainings_and_measurements(data: str) -> None:
    one, two, three = (plan(data, f"table{number}") for number in (1, 2, 3))
    for first, second in ((one, two), (one, three), (two, three)):
        shared = first.keys() & second.keys()
        assert all(first[name] == second[name] for name in shared)
    assert {"ic_me/seed0/train", "ic_me_video/seed0/compare"} <= one.keys() & two.keys() & three.keys()


def test_video_starts_from_the_image_stage_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for views, read in (("", ("res3", 1)), ("_two_view", ("", 3)), ("_fpn", ("", 3))):
        for name in ("ic_me_video", "ic_me_longer"):
            stage = plan("synthetic", "table1")[f"{name}{views}/seed1/train"]
            start = plan("synthetic", "table1")[f"ic_me{views}/seed1/train"]
            args = understood(stage)
            cfg = load_config(args.config_file, args.opts)
            assert stage.needs[0] == start.name and start.outputs == (cfg.MODEL.WEIGHTS,)
            video, clips, count = cfg.MODEL.SOLO_TRACK.VIDEO.ENABLED, cfg.SOLVER.CLIPS_PER_BATCH, cfg.MODEL.SOLO_TRACK.EMB.VIEWS
            assert video == (clips > 0) == (name == "ic_me_video") and count == (2 if views == "_two_view" else 1)
            before = load_config(understood(start).config_file, understood(start).opts)
            for emb in (cfg.MODEL.SOLO_TRACK.EMB, before.MODEL.SOLO_TRACK.EMB):
                assert read == (emb.STAGE, emb.KERNEL_SIZE)
            assert cfg.INPUT.VIEWS.SCATTER == before.INPUT.VIEWS.SCATTER == 0.5
            assert cfg.TRACKER_HEADS.CALIBRATION.NEW_SHARE == before.TRACKER_HEADS.CALIBRATION.NEW_SHARE == 0.1


def test_what_makes_a_cell_wins_over_the_user_s_overrides() -> None:
    stage = plan("synthetic", "table2")["ic_me_video_4_frames/seed0/train"]
    cfg = load_config(str(ROOT / understood(stage).config_file), understood(stage).opts)
    assert cfg.INPUT.CLIPS.FRAMES == 4 and cfg.SOLVER.MAX_ITER == 9
    untrained = understood(plan("synthetic", "table3")["masktrack_rcnn_untrained/seed0/train"])
    cfg = load_config(str(ROOT / untrained.config_file), untrained.opts)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (1, 0.0)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "plus"])
def test_every_measurement_has_the_trackers_of_the_rows_that_read_it(name: str) -> None:
    table = TABLES["synthetic", name]
    for row in table.rows:
        args = understood(plan("synthetic", name)[measurements(table, row, 0)[0]])
        assert row.tracker in args.tracker and args.metrics == "mot", "the columns IDF1 and HOTA"


def test_adaptation_is_a_measurement_of_the_same_weights() -> None:
    plain, adapted = (understood(plan("synthetic", "table3")[f"ic_me_video/seed0/{name}"]) for name in ("compare", "compare_adapted"))
    assert plain.weights == adapted.weights and plain.output != adapted.output
    configs = [load_config(str(ROOT / args.config_file), args.opts) for args in (plain, adapted)]
    assert [cfg.TTA.ENABLED for cfg in configs] == [False, True]


def test_synthetic_data_have_the_seed_and_the_user_s_options() -> None:
    stages = plan("synthetic", "table3", Run("out", (0,), data_seed=7, data_options=("--images", "8", "--videos", "2")))
    videos, labelled = stages["data/synthetic"].command, stages["data/synthetic_labelled"].command
    assert videos[2:7] == ("synthetic", "--output", "out/data/synthetic", "--seed", "7")
    amounts = ("--light", "0.35", "--videos", "200", "--unlabelled-videos", "120", "--images", "8", "--videos", "2")
    assert videos[7:] == amounts, "the user's come later"
    assert labelled[labelled.index("--seed") + 1] == "107"
    amounts = ("--light", "0.35", "--videos", "200", "--frames", "10", "--images", "8", "--videos", "2")
    assert labelled[7:17] == amounts, "likewise"
    assert labelled[-6:] == ("--images", "0", "--val-images", "0", "--unlabelled-videos", "0"), "no images, whatever the user wants"
    assert "--light" not in plan("synthetic", "ablation")["data/synthetic"].command, "the quickstart's own"
    assert all(stage.environment == (("DETECTRON2_DATASETS", "out/data"),) for stage in stages.values())


def test_full_size() -> None:
    stages = plan("coco-ytvis", "table3")
    train, video, score = (stages[f"{name}"] for name in ("ic_me/seed0/train", "ic_me_video/seed0/train", "ic_me_video/seed0/compare"))
    assert (train.gpus, video.gpus, score.gpus) == (8, 4, 1) and train.gpus * train.hours == pytest.approx(76)
    assert [item.name for item in train.inputs] == ["COCO", "projects/solo_track/configs/solo_track_r50_1x.yaml", "weights/R-50.pth"]
    assert [item.name for item in stages["data/ytvis_split"].inputs] == ["YouTube-VIS 2019"]
    assert understood(train).num_gpus == 8 and dict(train.environment) == {"DETECTRON2_DATASETS": "sets"}
    few = plan("coco-ytvis", "table3", Run("out", (0,), gpus=2))["ic_me/seed0/train"]
    assert understood(few).num_gpus == few.gpus == 2 and few.gpus * few.hours == pytest.approx(76)
    cfg = load_config(str(ROOT / understood(video).config_file), understood(video).opts)
    assert list(cfg.DATASETS.TRAIN_CLIPS) == ["ytvis_learn"] and understood(score).dataset == "ytvis_held_out"
    for kind in ("IMS_PER_BATCH", "CLIPS_PER_BATCH"):
        assert cfg.SOLVER[kind] % video.gpus == 0, "a batch is dealt out equally"
    named = {entry[0]: entry[1:] for entry in cfg.DATASETS.CUSTOM.VIDEOS}
    assert named["ytvis_held_out"] == ["out/data/ytvis_split/held_out.json", "sets"]
    masktrack = understood(stages["masktrack_rcnn/seed0/train"])
    assert list(load_config(str(ROOT / masktrack.config_file), masktrack.opts).DATASETS.TRAIN) == ["ytvis_learn"]


def test_full_size_scores_with_the_settings_of_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stages = plan("coco-ytvis", "table1")
    for name, stage in stages.items():
        if "/compare" in name or "/shift" in name:
            args = understood(stage)
            cfg = load_config(args.config_file, args.opts)
            assert cfg.INPUT.MIN_SIZE_TEST == 480 and cfg.DATASETS.CUSTOM.VIDEOS[1][0] == "ytvis_held_out"
    assert [item.name for item in stages["ic/seed0/shift"].inputs][:1] == ["COCO"], "the shift test moves instances of COCO's images"
    assert "COCO" not in {item.name for item in stages["ic/seed0/compare"].inputs}
    assert understood(stages["solo/seed0/compare"]).tracker == ["distance", "distance, no gate"], "it has no embedding"
    assert understood(stages["ic/seed0/compare"]).tracker is None


def test_measurements_wait_for_their_weights_and_videos() -> None:
    stages = plan("synthetic", "table3")
    for name in ("compare", "compare_adapted"):
        stage = stages[f"ic_me_video/seed1/{name}"]
        assert stage.needs == ("ic_me_video/seed1/train", "data/synthetic")
        assert [understood(stage).weights] == list(stages[stage.needs[0]].outputs)
    longer = understood(plan("synthetic", "table1")["ic_me_longer/seed0/compare"])
    assert not load_config(str(ROOT / longer.config_file), longer.opts).MODEL.SOLO_TRACK.VIDEO.ENABLED, "the network that was trained"
    assert understood(stages["ic_me_video/seed0/compare_adapted"]).tracker == ["SOLO-Track", "SOLO-Track + cues"]


def test_trainings_have_their_seed_and_continue() -> None:
    for seed in RUN.seeds:
        args = understood(plan("synthetic", "table1")[f"ic/seed{seed}/train"])
        assert args.resume and args.opts[args.opts.index("SEED") + 1] == str(seed)


def test_folders() -> None:
    assert cell_folder(RUN, "ic", 3) == "out/ic/seed3" and cell_folder(RUN, "ic", 3, "adapted") == "out/ic/seed3/adapted"
