#!/usr/bin/env python
"""Score result files, of SoloTrack or of any other tool, against annotations: one command a format.

tools/evaluate.py COMMAND --help says more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
from pathlib import Path

if importlib.util.find_spec("solotrack") is None:  # not installed: this file sits in the repository
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from solotrack.config import ConfigError
from solotrack.data.categories import CATEGORY_SUBSETS, subset_category_ids
from solotrack.engine.cli import add_command, run_tool
from solotrack.evaluation.boxes import with_box_masks, with_box_truth
from solotrack.evaluation.mot import Bootstrap, score_identities
from solotrack.evaluation.operating_point import best_operating_point
from solotrack.evaluation.ytvis import score_tracks, videos_with_categories
from solotrack.evaluation.ytvis_format import GroundTruth, Track, load_json, read_ground_truth, read_predictions
from solotrack.files import atomic_write

YTVIS_HELP = """\
Score mask tracks by the YouTube-VIS metric: average precision (AP) and recall (AR) of tubes, the same numbers as the official evaluator.

ANNOTATIONS is a YouTube-VIS (2019, 2021, OVIS) json with annotations; the public validation and test files have none.
PREDICTIONS is a json list, or a .zip with it as results.json, of
  {"video_id": 1, "category_id": 3, "score": 0.9, "segmentations": [RLE, null, RLE, ...]}
with one entry a frame of the video: an RLE {"size": [height, width], "counts": "..."} at the video's own size, or null where the object is
out of sight. Every fault of the file is listed before anything is scored.

examples:
  python tools/evaluate.py ytvis --annotations ytvis_2019/valid.json --predictions results.json
  python tools/evaluate.py ytvis --annotations ytvis_2019/train.json --predictions results.zip --categories name20 --output-json scores.json

The second one scores the 20 categories whose names COCO has too, on the videos that show one of them (the paper's Table 1).
Where the truth is boxes, --boxes scores the boxes of the predicted masks.
"""
MOT_HELP = """\
Score the identities of tracks by the boxes of their masks: IDF1, IDP, IDR, HOTA, DetA, AssA, MOTA and identity switches (TrackEval).

ANNOTATIONS and PREDICTIONS are YouTube-VIS files as for "ytvis". Objects of all categories count together, each by its boxes. These metrics
know no ranking: every track that is in the file counts in full. Choose --score-threshold without looking at this truth; with a detection
threshold chosen on validation images (the command "threshold", then TRACKER_HEADS.SCORE_THRESH) leave it at 0.

examples:
  python tools/evaluate.py mot --annotations test_boxes.json --predictions results.json
  python tools/evaluate.py mot --annotations test_boxes.json --predictions results.json --bootstrap 1000 --output-json scores.json

--bootstrap resamples blocks of consecutive frames of each video. The interval is about the stretches of time in these videos; it says
nothing of other scenes and people.
"""
THRESHOLD_HELP = """\
The detection score from which on boxes are right and complete in balance: the largest F1 at an IoU of 0.5 on labelled images.

ANNOTATIONS is a COCO json of validation images, PREDICTIONS the detections of the model in COCO's result format, as
"tools/train_net.py --eval-only" writes them to OUTPUT_DIR/inference/NAME/coco_instances_results.json. Use the score as
TRACKER_HEADS.SCORE_THRESH where tracks are scored by identity metrics.

example:
  python tools/evaluate.py threshold --annotations val.json --predictions output/inference/people_val/coco_instances_results.json
"""


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ytvis(commands)
    _add_mot(commands)
    _add_threshold(commands)
    return run_tool(lambda args: args.run(args), parser, argv)


def _add_ytvis(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "ytvis", run_ytvis, "mask tracks of YouTube-VIS and OVIS", YTVIS_HELP)
    _add_files(parser, "ground truth, .json", "results, .json or .zip")
    parser.add_argument(
        "--categories",
        choices=CATEGORY_SUBSETS,
        default="all",
        help="score all categories, the 20 that share their name with COCO's, or these without mouse (default: %(default)s)",
    )
    parser.add_argument(
        "--videos",
        choices=("any", "all"),
        default="any",
        help="with --categories name20 or sem19: score any video that has an object of them, or all videos (default: %(default)s)",
    )
    parser.add_argument(
        "--output-json", type=Path, metavar="FILE", help="write the twelve numbers here, as fractions; -1 = nothing to score"
    )
    parser.add_argument("--strict", action="store_true", help="a track with more or fewer entries than its video has frames is an error")
    parser.add_argument("--boxes", action="store_true", help="score the boxes of the masks, on both sides")


def _add_mot(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "mot", run_mot, "identities by boxes: IDF1, HOTA, MOTA", MOT_HELP)
    _add_files(parser, "ground truth, .json", "results, .json or .zip")
    parser.add_argument("--score-threshold", type=float, default=0.0, metavar="SCORE", help="leave out tracks below it (default: none)")
    parser.add_argument("--bootstrap", type=int, default=0, metavar="N", help="resamples for 95 %% intervals (default: no intervals)")
    parser.add_argument("--block", type=int, default=0, metavar="FRAMES", help="of a block (default: root of the video's length)")
    parser.add_argument("--seed", type=int, default=0, help="of the blocks (default: %(default)s)")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write scores (fractions), counts and intervals here")


def _add_threshold(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "threshold", run_threshold, "score of the best F1", THRESHOLD_HELP)
    _add_files(parser, "COCO json of images", "detections, COCO result format")


def _add_files(parser: argparse.ArgumentParser, annotations: str, predictions: str) -> None:
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help=annotations)
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help=predictions)


def run_ytvis(args: argparse.Namespace) -> None:
    """Print the twelve numbers and the table of categories, and write the numbers if asked to."""
    truth, tracks = _read(args, args.strict)
    if args.boxes:
        truth, tracks = with_box_truth(truth), with_box_masks(tracks)
    category_ids = video_ids = None
    if args.categories != "all":
        category_ids = subset_category_ids(({"id": i, "name": name} for i, name in truth.categories.items()), args.categories)
        if args.videos == "any":
            video_ids = videos_with_categories(truth, category_ids)
    result = score_tracks(truth, tracks, category_ids, video_ids)
    print(result.summary())
    _write(args.output_json, result.stats)


def run_mot(args: argparse.Namespace) -> None:
    """Print scores, intervals and counts, and write them if asked to."""
    if args.bootstrap < 0 or args.block < 0 or args.seed < 0:
        raise ConfigError("--bootstrap, --block and --seed must be at least 0.")
    truth, tracks = _read(args)
    bootstrap = Bootstrap(args.bootstrap, args.block, args.seed) if args.bootstrap else None
    result = score_identities(truth, tracks, args.score_threshold, bootstrap)
    print(result.summary())
    _write(args.output_json, {"scores": result.scores, "counts": result.counts, "intervals": result.intervals})


def run_threshold(args: argparse.Namespace) -> None:
    """Print the score of the best F1 and what it is worth."""
    point = best_operating_point(load_json(args.annotations), load_json(args.predictions))
    print(
        f"score {point.score:.3f}: F1 {point.f1:.3f}, precision {point.precision:.3f}, recall {point.recall:.3f} of {point.objects} objects"
    )


def _read(args: argparse.Namespace, strict: bool = False) -> tuple[GroundTruth, list[Track]]:
    truth = read_ground_truth(load_json(args.annotations), str(args.annotations))
    tracks, warning = read_predictions(load_json(args.predictions), truth, str(args.predictions), strict)
    if warning:
        logging.warning("%s", warning)
    return truth, tracks


def _write(path: Path | None, content: dict) -> None:
    if path:
        with atomic_write(path) as file:
            json.dump(content, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
