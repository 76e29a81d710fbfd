"""The command line from end to end: data, training, comparison, pictures and scores, and what a wrong word gets."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from solotrack.config import load_config
from solotrack.data.frames import open_frames
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.comparison import TRACKERS
from tests import tiny
from tests.toolserver import Finished, tool_server

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
FRAMES = 4


def load_tool(name: str) -> ModuleType:
    """By its path: Detectron2's wheel installs a package that is called "tools", too."""
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- help


@pytest.mark.parametrize("name", TOOLS)
def test_help(name: str) -> None:
    done = tool_server().tool(name, "--help")
    assert done.code == 0 and not done.err, done.err
    assert f"usage: {name}.py" in done.out and len(done.out.splitlines()) > 5
    assert tool_server().tool(name, "--no-such-option").code == 2


# ---- from nothing to scores


@dataclass
class Project:
    """A folder in which every step was run by its tool.

    Attributes:
        folder: data/, run/ (training), compare/, tracked/, *.png and *.json.
        config: file, without paths of data: they come by DETECTRON2_DATASETS.
        printed: what each step wrote to its standard output.
    """

    folder: Path
    config: Path
    printed: dict[str, str]

    def tool(self, name: str, *words: str | Path) -> Finished:
        return tool_server().tool(name, *words, cwd=self.folder, DETECTRON2_DATASETS=str(self.folder / "data"))

    def step(self, name: str, *words: str | Path) -> None:
        done = self.tool(name, *words)
        assert done.code == 0, f"{name}: {done.err}"
        self.printed[name] = done.out


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Ten steps of training from weights that see something everywhere, so that all later steps have something to do."""
    folder = tmp_path_factory.mktemp("project")
    changes = {
        **tiny.detect_everything(),
        "DATASETS.TRAIN": ["synthetic_train"],
        "DATASETS.TEST": ["synthetic_test"],
        "DATASETS.CUSTOM.IMAGES": [],
        "DATASETS.CUSTOM.VIDEOS": [],
        "MODEL.WEIGHTS": "start.pth",
        "OUTPUT_DIR": "run",
        "SOLVER.MAX_ITER": 10,
        "SOLVER.BASE_LR": 0.0001,
    }
    AtomicCheckpointer(tiny.model(load_config("", tiny.words(tiny.options(changes))), spread=0.3), str(folder)).save("start")
    made = Project(folder, Path(tiny.write_config(folder / "config.yaml", changes)), {})
    sizes = ["--images", "8", "--val-images", "3", "--videos", "2", "--unlabelled-videos", "0", "--frames", FRAMES, "--size", tiny.SIZE]
    made.step("prepare_data", "synthetic", "--output", "data/synthetic", "--seed", "3", *sizes, "--workers", "1", "--quiet")
    made.step("train_net", "--config-file", "config.yaml")
    model = ["--config-file", "run/config.yaml", "--weights", "run/model_final.pth"]
    truth, results = "data/synthetic/test.json", "compare/SOLO-Track/results.json"
    made.step("compare_trackers", *model, "--output", "compare")
    made.step("shift_test", *model, "--images", "synthetic_val", "--videos", "synthetic_test", "--output-json", "shift.json")
    made.step("track_video", *model, "--input", "data/synthetic/videos/test/0001", "--output", "tracked", "--fps", "5")
    drawing = ["--annotations", truth, "--frames", "data/synthetic/videos/test"]
    made.step("draw_results", *drawing, "--predictions", results, "--score-thresh", "0", "--sheet", "tracks.png", "--mp4", "tracks.mp4")
    made.step("evaluate", "ytvis", "--annotations", truth, "--predictions", results, "--output-json", "scores.json")
    return made


def test_training_leaves_a_model_that_needs_no_training_data(project: Project) -> None:
    run = project.folder / "run"
    assert {"config.yaml", "log.txt", "metrics.json", "last_checkpoint", "model_final.pth"} <= {path.name for path in run.iterdir()}
    cfg = load_config(str(run / "config.yaml"))
    assert list(cfg.DATASETS.CLASS_NAMES) == ["disc", "square", "triangle", "star"]
    log = (run / "log.txt").read_text()
    assert "instances in" in log and "YouTube-VIS results on synthetic_test" in log, "the package's own messages are in the log"
    last = json.loads((run / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] >= 9 and "segm/AP" in last


def test_comparison(project: Project) -> None:
    rows = json.loads((project.folder / "compare" / "comparison.json").read_text())
    assert rows.keys() == TRACKERS.keys()
    table = (project.folder / "compare" / "comparison.md").read_text()
    assert table in project.printed["compare_trackers"]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(TRACKERS)
    assert f"{rows['IoU']['AP']:.1f}" in table.splitlines()[3]


def test_comparison_of_some_trackers_with_overrides(project: Project) -> None:
    model = ["--config-file", "run/config.yaml", "--weights", "run/model_final.pth", "--output", "some"]
    done = project.tool(
        "compare_trackers", *model, "--tracker", "IoU", "--tracker", "distance, no gate", "TRACKER_HEADS.SCORE_THRESH", "0.9"
    )
    assert done.code == 0, done.err
    assert list(json.loads((project.folder / "some" / "comparison.json").read_text())) == ["IoU", "distance, no gate"]


def test_comparison_of_identities(project: Project) -> None:
    model = ["--config-file", "run/config.yaml", "--weights", "run/model_final.pth", "--output", "identities"]
    rows = ["--tracker", "distance", "--tracker", "IoU", "--metrics", "mot", "--bootstrap", "5"]
    done = project.tool("compare_trackers", *model, *rows, "TEST.BOX_TUBES", "True")
    assert done.code == 0, done.err
    folder = project.folder / "identities"
    table = (folder / "comparison.md").read_text()
    columns = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    assert columns == ["tracker", "AP", "AP50", "IDF1", "HOTA", "DetA", "AssA", "MOTA", "IDSW", "IDF1 - IoU's"]
    values = json.loads((folder / "comparison.json").read_text())
    scored = project.tool(
        *("evaluate", "mot", "--annotations", "data/synthetic/test.json", "--predictions", "identities/distance/results.json"),
        *("--bootstrap", "5", "--output-json", "identities.json"),
    )
    assert scored.code == 0, scored.err
    expected = json.loads((project.folder / "identities.json").read_text())
    row = values["distance"]
    assert row["IDF1"] == pytest.approx(100 * expected["scores"]["IDF1"]) and row["IDSW"] == expected["counts"]["IDSW"]
    assert row["intervals"]["HOTA"] == pytest.approx([100 * end for end in expected["intervals"]["HOTA"]])
    difference, low, high = row["IDF1 difference"]
    assert difference == pytest.approx(row["IDF1"] - values["IoU"]["IDF1"]) and low <= high
    assert f"{difference:+.1f} ({low:+.1f} to {high:+.1f})" in table


@pytest.mark.parametrize(("subset", "videos"), [("any", 1), ("all", 2)])
def test_identities_are_of_the_videos_that_ap_is_of(project: Project, subset: str, videos: int) -> None:
    """One of COCO's categories, in the first video alone."""
    data = json.loads((project.folder / "data/synthetic/test.json").read_text())
    first = data["videos"][0]["id"]
    kept = next(x["category_id"] for x in data["annotations"] if x["video_id"] == first)
    data["annotations"] = [x for x in data["annotations"] if x["category_id"] != kept or x["video_id"] == first]
    names = ["person" if x["id"] == kept else x["name"] for x in data["categories"]]
    data["categories"] = [{"id": x["id"], "name": name} for x, name in zip(data["categories"], names, strict=True)]
    (project.folder / "half.json").write_text(json.dumps(data))
    done = project.tool(
        *("compare_trackers", "--config-file", "run/config.yaml", "--weights", "run/model_final.pth", "--output", f"half_{subset}"),
        *("--dataset", f"half_{subset}", "--tracker", "IoU", "--metrics", "mot", "DATASETS.VIDEO_CATEGORIES", "name20"),
        *("DATASETS.CUSTOM.VIDEOS", f"[['half_{subset}', 'half.json', 'data/synthetic/videos/test']]"),
        *("DATASETS.VIDEO_SUBSET", subset, "DATASETS.CLASS_NAMES", str(names)),
    )
    assert done.code == 0, done.err
    row = json.loads((project.folder / f"half_{subset}/comparison.json").read_text())["IoU"]
    assert row["frames"] == videos * int(FRAMES)


def test_scores_of_the_written_results_are_those_of_the_comparison(project: Project) -> None:
    scores = json.loads((project.folder / "scores.json").read_text())
    row = json.loads((project.folder / "compare" / "comparison.json").read_text())["SOLO-Track"]
    for key in ("AP", "AP50", "AP75", "AR1", "AR10"):
        assert row[key] == pytest.approx(100 * scores[key])
    assert json.loads((project.folder / "compare" / "SOLO-Track" / "results.json").read_text()), "there was something to score"


def test_shift_test(project: Project) -> None:
    rows = json.loads((project.folder / "shift.json").read_text())
    assert rows.keys() == {"shift", "videos"} and all(row["instances"] > 5 for row in rows.values())
    assert f"{rows['shift']['match']:.3f}" in project.printed["shift_test"]


def test_pictures(project: Project) -> None:
    sheet = cv2.imread(str(project.folder / "tracks.png"))
    assert sheet.shape[0] > 2 * tiny.SIZE and sheet.shape[1] > FRAMES * tiny.SIZE
    assert len(list(open_frames(project.folder / "tracks.mp4"))) == FRAMES
    assert sorted(path.name for path in (project.folder / "data/synthetic/contact_sheets").iterdir()) == ["test.png", "train.png"]


def test_tracked_video(project: Project) -> None:
    tracked = project.folder / "tracked"
    results = json.loads((tracked / "results.json").read_text())
    assert results and all(len(track["segmentations"]) == FRAMES for track in results)
    assert len(list(open_frames(tracked / "overlay.mp4"))) == FRAMES
    with open(tracked / "tracks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["category"] for row in rows} <= {"disc", "square", "triangle", "star"}
    assert len(rows) == sum(rle is not None for track in results for rle in track["segmentations"])


def test_evaluating_again_gives_the_same(project: Project) -> None:
    options = ["OUTPUT_DIR", "again", "MODEL.WEIGHTS", "run/model_final.pth"]
    project.step("train_net", "--config-file", "run/config.yaml", "--eval-only", *options)
    for name in ("again", "compare/SOLO-Track"):
        folder = project.folder / name
        assert (folder if name != "again" else folder / "inference" / "synthetic_test").joinpath("results.json").exists()
    again = json.loads((project.folder / "again/inference/synthetic_test/results.json").read_text())
    assert again == json.loads((project.folder / "run/inference/synthetic_test/results.json").read_text())
    assert again == json.loads((project.folder / "compare/SOLO-Track/results.json").read_text())


def test_a_model_weighs_its_own_classes_against_other_data(project: Project) -> None:
    """A video of unlabelled frames elsewhere needs neither data sets nor labels."""
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(project.folder / "any.png"), image)
    model = ["--config-file", "run/config.yaml", "--weights", "run/model_final.pth"]
    done = tool_server().tool(
        "track_video", *model, "--input", "any.png", "--output", "any", cwd=project.folder, DETECTRON2_DATASETS="/none"
    )
    assert done.code == 0 and "Classes have numbers" not in done.err, done.err


# ---- wrong words

MODEL = ("--config-file", "config.yaml", "--weights", "start.pth")
DRAW = ("draw_results", "--annotations", "data/synthetic/test.json", "--frames", "data/synthetic/videos/test")
WRONG = [
    # no such config file
    (("train_net", "--config-file", "no.yaml"), "There is no config file no.yaml"),
    (("compare_trackers", "--config-file", "no.yaml", "--output", "x"), "There is no config file no.yaml"),
    (("shift_test", "--config-file", "no.yaml", "--images", "a"), "There is no config file no.yaml"),
    (("calibrate", "--config-file", "no.yaml", "--output", "x/x.pth"), "There is no config file no.yaml"),
    (("calibrate", *MODEL, "--output", "x/x"), "ends in .pth"),
    (("calibrate", *MODEL[:3], "no.pth", "--output", "x/x.pth"), "There is no checkpoint no.pth"),
    (("calibrate", *MODEL, "--output", "x/x.pth", "MODEL.SOLO_TRACK.EMB.ENABLED", "False"), "needs MODEL.SOLO_TRACK.EMB.ENABLED"),
    (("calibrate", *MODEL, "--output", "x/x.pth", "TRACKER_HEADS.CALIBRATION.IMAGES", "1"), "Too few objects"),
    (("track_video", "--config-file", "no.yaml", "--input", "any.png", "--output", "x"), "There is no config file no.yaml"),
    # misspelt keys
    (("train_net", "--config-file", "config.yaml", "SOLVER.BASELR", "0.1"), "no config key SOLVER.BASELR. Did you mean SOLVER.BASE_LR"),
    (("train_net", "--config-file", "misspelt.yaml"), "no config key MODEL.SOLO.SIGMAA. Did you mean MODEL.SOLO.SIGMA"),
    (("compare_trackers", *MODEL, "--output", "x", "TRACKER_HEADS.SIMS", "masa"), "Did you mean TRACKER_HEADS.SIM"),
    (("shift_test", *MODEL, "--images", "a", "INPUT.MIN_SIZE_TESTS", "64"), "Did you mean INPUT.MIN_SIZE_TEST"),
    (("track_video", *MODEL, "--input", "a", "--output", "x", "TEST.FRAMES", "3"), "Did you mean TEST.FRAMES_PER_BATCH"),
    # values
    (("train_net", "--config-file", "config.yaml", "MODEL.SOLO.SIGMA", "3.0"), "MODEL.SOLO.SIGMA is 3.0"),
    (("train_net", "--config-file", "config.yaml", "MODEL.DEVICE", "cuda:77"), "cuda:77"),
    (("train_net", "--config-file", "config.yaml", "MODEL.SOLO.NUM_CLASSES", "3"), "set MODEL.SOLO.NUM_CLASSES to 4"),
    (("train_net", "--config-file", "config.yaml", "MODEL.SOLO.IN_FEATURES", "['p2', 'p3', 'p7']"), "names p7"),
    (("compare_trackers", *MODEL, "--output", "x", "DATASETS.TEST", "()"), "--dataset"),
    (("compare_trackers", *MODEL, "--output", "x", "--bootstrap", "9"), "goes with --metrics mot"),
    (("compare_trackers", *MODEL, "--output", "x", "--metrics", "mot", "--bootstrap", "-1"), "--bootstrap and --seed must be at least 0"),
    (("compare_trackers", *MODEL, "--output", "x", "--metrics", "mot", "--seed", "-1"), "--bootstrap and --seed must be at least 0"),
    (("shift_test", *MODEL), "--images"),
    (("shift_test", *MODEL, "--images", "synthetic_val", "--limit", "0"), "--limit must be at least 1"),
    (("shift_test", *MODEL, "--images", "synthetic_val", "--seed", "-1"), "--seed at least 0"),
    (("shift_test", *MODEL, "--images", "synthetic_val", "MODEL.DEVICE", "gpu"), "MODEL.DEVICE is 'gpu', which PyTorch does not know"),
    (("compare_trackers", *MODEL, "--output", "x", "MODEL.DEVICE", "gpu"), "MODEL.DEVICE is 'gpu', which PyTorch does not know"),
    (("train_net", "--config-file", "config.yaml", "MODEL.DEVICE", "gpu"), "MODEL.DEVICE is 'gpu', which PyTorch does not know"),
    (("benchmark", "tracker", "--device", "gpu"), "MODEL.DEVICE is 'gpu', which PyTorch does not know"),
    (("benchmark", "tracker", "--seed", "-1"), "--seed at least 0"),
    (("track_video", *MODEL, "--input", "a", "--output", "x", "--device", "gpu"), "MODEL.DEVICE is 'gpu'"),
    (("track_video", *MODEL, "--input", "a", "--output", "x", "--fps", "inf"), "--fps greater than 0 and finite"),
    (("reproduce", "ablation", "--output", "x", "--seeds", "-1"), "--seeds and --data-seed at least 0"),
    (("reproduce", "table1", "--output", "x", "--gpus", "0"), "--gpus must be at least 1"),
    (("reproduce", "table1", "--data", "coco-ytvis", "--output", "x", "--gpus", "3"), "made for 8; take one of 1, 2, 4, 8."),
    (("reproduce", "table1", "--output", "x", "--dry-run", "--override", "SOLVER.MAXITER", "3"), "Did you mean SOLVER.MAX_ITER"),
    (("reproduce", "table2", "--output", "x", "--dry-run", "--override", "SOLVER.MAX_ITER"), "KEY VALUE pairs"),
    ((*DRAW, "--mp4", "x.mp4", "--fps", "inf"), "--fps greater than 0 and finite"),
    ((*DRAW,), "--sheet"),
    ((*DRAW, "--sheet", "x.png", "--columns", "0"), "--columns must be at least 1"),
    ((*DRAW, "--mp4", "x.mp4", "--fps", "0"), "--fps greater than 0"),
    ((*DRAW, "--sheet", "x.png", "--video", "77"), "has no video 77; its ids are 1, 2"),
    # weights
    (("train_net", "--config-file", "config.yaml", "MODEL.WEIGHTS", "no.pth"), "There is no checkpoint no.pth"),
    (("train_net", "--config-file", "config.yaml", "--eval-only", "MODEL.WEIGHTS", "''"), "No weights: set MODEL.WEIGHTS"),
    (("train_net", "--config-file", "config.yaml", "--eval-only", "DATASETS.TEST", "()"), "nothing to evaluate: DATASETS.TEST is empty"),
    (("compare_trackers", *MODEL[:3], "no.pth", "--output", "x"), "There is no checkpoint no.pth"),
    (("shift_test", *MODEL[:3], "no.pth", "--images", "synthetic_val"), "There is no checkpoint no.pth"),
    (("shift_test", *MODEL[:3], "damaged.pth", "--images", "synthetic_val"), "damaged.pth is not a readable checkpoint"),
    (("compare_trackers", *MODEL, "--output", "x", "MODEL.SOLO_TRACK.EMB.DIM", "4"), "start.pth does not fit the config"),
    # folders
    (("train_net", "--config-file", "config.yaml", "OUTPUT_DIR", "config.yaml/run"), "config.yaml/run"),
    (("compare_trackers", *MODEL, "--output", "config.yaml/x"), "config.yaml"),
    # data
    (("train_net", "--config-file", "config.yaml", "DATASETS.TRAIN", "('synthetic_trian',)"), "Did you mean synthetic_train"),
    (("train_net", "--config-file", "config.yaml", "DATASETS.TRAIN", "('ytvis_2019_train',)"), "ytvis_2019_train is not here"),
    (("train_net", "--config-file", "config.yaml", "DATASETS.TRAIN", "('synthetic_test',)"), "which is a set of videos"),
    (
        ("train_net", "--config-file", "config.yaml", "DATASETS.CUSTOM.IMAGES", "[['a', 'no.json', '.']]", "DATASETS.TRAIN", "('a',)"),
        "no.json",
    ),
    (("compare_trackers", *MODEL, "--output", "x", "--dataset", "synthetic_val"), "has no list 'videos'"),
    (("compare_trackers", *MODEL, "--output", "x", "--dataset", "synthetic_unlabelled"), "synthetic_unlabelled is not here"),
    (("shift_test", *MODEL, "--images", "synthetic_test"), "synthetic_test is a set of videos"),
    (("draw_results", "--annotations", "no.json", "--sheet", "x.png"), "There is no annotation file no.json"),
    (("draw_results", "--annotations", "data/synthetic/test.json", "--sheet", "x.png"), "file names must be relative to"),
    ((*DRAW, "--sheet", "x.png", "--predictions", "no.json"), "no.json"),
    (("track_video", *MODEL, "--input", "no.mp4", "--output", "x"), "no file, folder or pattern no.mp4"),
    (("evaluate", "ytvis", "--annotations", "no.json", "--predictions", "no.json"), "no.json"),
    (("prepare_data", "synthetic", "--output", "run", "--seed", "0"), "name another folder"),
]


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "")
def test_wrong_words_get_one_sentence(project: Project, words: tuple[str, ...], sentence: str) -> None:
    (project.folder / "misspelt.yaml").write_text("VERSION: 2\nMODEL:\n  SOLO:\n    SIGMAA: 0.3\n")
    (project.folder / "damaged.pth").write_bytes((project.folder / "start.pth").read_bytes()[:1000])
    done = project.tool(*words)
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert "error: " in done.err and sentence in done.err[done.err.index("error: ") :], done.err
    assert not (project.folder / "x").exists() and not (project.folder / "x.png").exists() and not (project.folder / "x.mp4").exists()


def test_ctrl_c_in_training_says_how_to_go_on(project: Project) -> None:
    interrupt = (
        "import signal, solotrack.engine.trainer as t; t.Trainer.train = lambda self: signal.raise_signal(signal.SIGINT); "
        "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a script's background jobs are started deaf to it
    )
    words = ("--config-file", "config.yaml", "OUTPUT_DIR", "stopped")
    done = tool_server().tool("train_net", *words, cwd=project.folder, setup=interrupt, DETECTRON2_DATASETS=str(project.folder / "data"))
    assert done.code == 130 and "Traceback" not in done.err, done.err
    assert done.err.splitlines()[-1].startswith("Stopped. The same command with --resume continues")


def test_an_image_of_another_size_stops_training_with_a_sentence(project: Project) -> None:
    data = json.loads((project.folder / "data/synthetic/train.json").read_text())
    for record in data["images"]:
        record["width"] += 2
    for annotation in data["annotations"]:
        annotation["segmentation"] = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]]
    (project.folder / "wider.json").write_text(json.dumps(data))
    images = f"[['wider', '{project.folder / 'wider.json'}', '{project.folder / 'data/synthetic/train'}']]"
    words = ("OUTPUT_DIR", "wider", "DATASETS.TEST", "()", "DATASETS.CUSTOM.IMAGES", images, "DATASETS.TRAIN", "('wider',)")
    done = project.tool("train_net", "--config-file", "config.yaml", *words, "DATALOADER.NUM_WORKERS", "1")
    assert done.code == 2 and "Traceback" not in done.err, done.err
    assert f"pixels (width x height) but the data set's json says {tiny.SIZE + 2} x {tiny.SIZE}" in done.err.splitlines()[-1]


# ---- plans made of these commands


def options_of(tool: str) -> Callable:
    return load_tool(tool).parser().parse_args


def test_commands_of_the_quickstart_are_understood() -> None:
    """Their options exist, their configs load, every stage needs stages that are there, and no two write the same file."""
    stages = load_tool("quickstart").plan("out", 0)
    assert len({stage.name for stage in stages}) == len(stages)
    outputs = [path for stage in stages for path in stage.outputs]
    assert len(set(outputs)) == len(outputs) and all(path.startswith("out/") for path in outputs)
    assert {need for stage in stages for need in stage.needs} <= {stage.name for stage in stages}
    checked = 0
    for stage in stages:
        script, *words = stage.command[1:]
        assert (ROOT / script).exists()
        if "prepare_data" in script:
            continue
        args = options_of(Path(script).stem)(words)
        if hasattr(args, "config_file"):
            assert load_config(str(ROOT / args.config_file), args.opts).DATASETS.TRAIN
            checked += 1
    assert checked >= 3
