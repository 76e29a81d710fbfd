"""evaluator: the YouTube-VIS metric."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from solotrack.config import ConfigError
from solotrack.evaluation.ytvis import score_tracks
from solotrack.evaluation.ytvis_format import load_json, read_ground_truth, read_predictions

from .inputs import random_tubes
from .measure import alternate, ratio, report, row

__all__ = ["run_evaluator"]


def run_evaluator(args: argparse.Namespace) -> None:
    if bool(args.annotations) != bool(args.predictions):
        raise ConfigError("Give both --annotations and --predictions, or neither for random tubes.")
    if args.predictions and args.predictions.endswith(".zip"):
        raise ConfigError(f"{args.predictions}: give the results.json in it; the comparison is with parsing that.")
    with tempfile.TemporaryDirectory() as folder:
        files = args.annotations, args.predictions
        if not args.annotations:
            files = f"{folder}/truth.json", f"{folder}/results.json"
            for path, content in zip(files, random_tubes(np.random.default_rng(args.seed), args), strict=True):
                Path(path).write_text(json.dumps(content), encoding="utf-8")
        results = []

        def parse() -> None:
            for path in files:
                json.loads(Path(path).read_bytes())

        def evaluate() -> None:
            truth = read_ground_truth(load_json(files[0]), files[0])
            tracks, _ = read_predictions(load_json(files[1]), truth, files[1])
            results.append((score_tracks(truth, tracks).stats["AP"], len(truth.tracks), len(tracks)))

        seconds = alternate({"json.loads of both files": parse, "read, check and score them": evaluate}, args.repeats, args.device)
        size = sum(os.path.getsize(path) for path in files) / 1e6
    parsing, scoring = seconds.values()
    rows = [row(name, s, **{"times json.loads": ratio(s, parsing)}) for name, s in zip(seconds, (parsing, scoring), strict=True)]
    report(args, rows, seconds, ["{1} true and {2} predicted tracks, AP {0:.4f}; ".format(*results[-1]) + f"{size:.1f} MB"])
