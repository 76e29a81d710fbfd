from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from solotrack.data.categories import YTVIS_2019_CATEGORIES
from solotrack.evaluation.boxes import with_box_masks, with_box_truth
from solotrack.evaluation.mot import Bootstrap, score_identities
from solotrack.evaluation.ytvis import evaluate_ytvis, score_tracks
from solotrack.evaluation.ytvis_format import read_ground_truth, read_predictions
from solotrack.ops.rle import encode_masks

H, W = 10, 12
DOG, MOUSE, LIZARD = 8, 36, 3


@pytest.fixture(scope="module")
def tool(repo_root: Path):
    spec = importlib.util.spec_from_file_location("evaluate_tool", repo_root / "tools" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rles(seed: int, length: int = 3) -> list[dict]:
    return encode_masks(np.random.default_rng(seed).random((length, H, W)) < 0.6)


def annotations() -> dict:
    objects = [(1, 1, DOG, 0), (2, 1, LIZARD, 1), (3, 2, MOUSE, 2), (4, 3, LIZARD, 3)]
    return {
        "videos": [{"id": v, "height": H, "width": W, "file_names": ["f.jpg"] * 3} for v in (1, 2, 3)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(YTVIS_2019_CATEGORIES, start=1)],
        "annotations": [
            {"id": i, "video_id": v, "category_id": c, "iscrowd": 0, "segmentations": rles(seed), "areas": [70] * 3}
            for i, v, c, seed in objects
        ],
    }


def predictions() -> list[dict]:
    # right, a dog where only a lizard is, the lizard, a wrong mouse
    found = [(1, DOG, 0.6, 0), (3, DOG, 0.9, 5), (3, LIZARD, 0.7, 3), (2, MOUSE, 0.3, 6)]
    return [{"video_id": v, "category_id": c, "score": s, "segmentations": rles(seed)} for v, c, s, seed in found]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {"gt": tmp_path / "gt.json", "json": tmp_path / "r.json", "zip": tmp_path / "r.zip", "out": tmp_path / "scores.json"}
    paths["gt"].write_text(json.dumps(annotations()))
    paths["json"].write_text(json.dumps(predictions()))
    with zipfile.ZipFile(paths["zip"], "w") as archive:
        archive.writestr("results.json", json.dumps(predictions()))
    return paths


def run(tool, files: dict[str, Path], *options: str, predictions: str = "json") -> int:
    return tool.main(["ytvis", "--annotations", str(files["gt"]), "--predictions", str(files[predictions]), *options])


@pytest.mark.parametrize("kind", ["json", "zip"])
def test_writes_the_exact_numbers(tool, files, kind, capsys):
    assert run(tool, files, "--output-json", str(files["out"]), predictions=kind) == 0
    written = json.loads(files["out"].read_text())
    assert written == evaluate_ytvis(annotations(), predictions()).stats
    assert 0 < written["AP"] < 1
    assert written["APl"] == -1
    printed = capsys.readouterr().out
    for text in ("AP50", "AR100", f"{100 * written['AP']:.2f}", "dog", "lizard", "mouse"):
        assert text in printed
    assert "zebra" not in printed


@pytest.mark.parametrize(
    ("options", "categories", "videos"),
    [
        (["--categories", "name20"], {DOG, MOUSE}, [1, 2]),
        (["--categories", "name20", "--videos", "all"], {DOG, MOUSE}, [1, 2, 3]),
        (["--categories", "sem19"], {DOG}, [1]),
        (["--videos", "any"], {DOG, MOUSE, LIZARD}, [1, 2, 3]),
    ],
)
def test_subsets(tool, files, options, categories, videos):
    assert run(tool, files, *options, "--output-json", str(files["out"])) == 0
    expected = evaluate_ytvis(annotations(), predictions(), categories, videos).stats
    assert json.loads(files["out"].read_text()) == expected


def test_subsets_differ(tool, files):
    scores = []
    for options in (["--categories", "name20"], ["--categories", "name20", "--videos", "all"], ["--categories", "sem19"], []):
        run(tool, files, *options, "--output-json", str(files["out"]))
        scores.append(json.loads(files["out"].read_text())["AP"])
    assert len(set(scores)) == 4


def test_boxes(tool, files):
    assert run(tool, files, "--boxes", "--output-json", str(files["out"])) == 0
    truth = read_ground_truth(annotations())
    tracks, _ = read_predictions(predictions(), truth)
    assert json.loads(files["out"].read_text()) == score_tracks(with_box_truth(truth), with_box_masks(tracks)).stats


def test_identities(tool, files, capsys):
    words = ["mot", "--annotations", str(files["gt"]), "--predictions", str(files["json"]), "--score-threshold", "0.5"]
    assert tool.main([*words, "--bootstrap", "20", "--block", "1", "--seed", "2", "--output-json", str(files["out"])]) == 0
    truth = read_ground_truth(annotations())
    result = score_identities(truth, read_predictions(predictions(), truth)[0], 0.5, Bootstrap(20, 1, 2))
    written = json.loads(files["out"].read_text())
    assert written["scores"] == result.scores and written["counts"] == result.counts
    assert written["intervals"] == {name: list(ends) for name, ends in result.intervals.items()}
    assert (written["counts"]["objects"], written["counts"]["tracks"]) == (4, 3)
    assert capsys.readouterr().out == result.summary() + "\n"
    for option in ("--bootstrap", "--block", "--seed"):
        assert tool.main([*words, option, "-1"]) == 2
        assert option in capsys.readouterr().err
    assert tool.main(words) == 0
    assert " to " not in capsys.readouterr().out


def test_threshold(tool, tmp_path, capsys):
    boxes = {"bbox": [0, 0, 5, 5], "area": 25, "category_id": 1, "image_id": 1}
    truth = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [{**boxes, "id": 1, "iscrowd": 0}]}
    detections = [{**boxes, "score": 0.75}, {**boxes, "bbox": [9, 9, 5, 5], "score": 0.25}]
    for name, content in (("val.json", truth), ("found.json", detections)):
        (tmp_path / name).write_text(json.dumps(content))
    words = ["threshold", "--annotations", str(tmp_path / "val.json"), "--predictions"]
    assert tool.main([*words, str(tmp_path / "found.json")]) == 0
    assert capsys.readouterr().out == "score 0.750: F1 1.000, precision 1.000, recall 1.000 of 1 objects\n"
    assert tool.main([*words, str(tmp_path / "val.json")]) == 2
    assert "COCO's result format" in capsys.readouterr().err


def test_strict_refuses_lists_of_wrong_length(tool, files, capsys, caplog):
    short = [{**p, "segmentations": p["segmentations"][:2]} for p in predictions()]
    files["json"].write_text(json.dumps(short))
    assert run(tool, files) == 0
    assert "prediction 3: 2 segmentations for the 3 frames" in caplog.text
    assert run(tool, files, "--strict") == 2
    assert "prediction 3: 2 segmentations for the 3 frames" in capsys.readouterr().err


def test_errors_are_one_message_and_exit_code_2(tool, files, capsys):
    cut = files["json"].read_text()[:100]
    cases = {
        "r.json: not valid json at byte": lambda: files["json"].write_text(cut),
        "score must be a finite number": lambda: files["json"].write_text(json.dumps([{**p, "score": None} for p in predictions()])),
        "r.json: cannot be read": lambda: files["json"].unlink(),
        "no category belongs to the subset 'name20'": lambda: (
            files["json"].write_text("[]"),
            files["gt"].write_text(json.dumps({**annotations(), "categories": [{"id": 1, "name": "disc"}], "annotations": []})),
        ),
        "no video is left": lambda: files["gt"].write_text(json.dumps({**annotations(), "annotations": []})),
        "gt.json: has no annotations": lambda: files["gt"].write_text(json.dumps({**annotations(), "annotations": None})),
    }
    for message, spoil in cases.items():
        spoil()
        assert run(tool, files, "--categories", "name20", "--output-json", str(files["out"])) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert "Traceback" not in error
    assert not files["out"].exists()


def test_unknown_options_are_refused(tool, files):
    for options in (["--categories", "name21"], ["--videos", "some"]):
        with pytest.raises(SystemExit) as stopped:
            run(tool, files, *options)
        assert stopped.value.code == 2


def test_help_teaches(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(["ytvis", "--help"])
    text = capsys.readouterr().out
    assert "python tools/evaluate.py ytvis --annotations" in text
    assert '"segmentations"' in text


def test_runs_as_a_script_from_another_folder(repo_root, files, tmp_path):
    command = [sys.executable, str(repo_root / "tools" / "evaluate.py"), "ytvis", "--annotations", "gt.json", "--predictions", "r.zip"]
    done = subprocess.run([*command, "--output-json", "scores.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(files["out"].read_text()) == evaluate_ytvis(annotations(), predictions()).stats
