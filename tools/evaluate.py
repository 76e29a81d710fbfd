#!/usr/bin/env python
"""Score result files, of SoloTrack or of any other tool, against annotations: one command a format, see --help."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
from pathlib import Path

if importlib.util.find_spec("solotrack") is None:  # not installed: this file sits in the repository
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from solotrack.data.categories import CATEGORY_SUBSETS, subset_category_ids
from solotrack.engine.cli import run_tool
from solotrack.evaluation.ytvis import score_tracks, videos_with_categories
from solotrack.evaluation.ytvis_format import load_json, read_ground_truth, read_predictions
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
"""


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ytvis(commands)
    return run_tool(lambda args: args.run(args), parser, argv)


def _add_ytvis(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "ytvis", help="mask tracks of YouTube-VIS and OVIS", description=YTVIS_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="ground truth, .json")
    parser.add_argument("--predictions", type=Path, required=True, metavar="FILE", help="results, .json or .zip")
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
    parser.set_defaults(run=run_ytvis)


def run_ytvis(args: argparse.Namespace) -> None:
    """Print the twelve numbers and the table of categories, and write the numbers if asked to."""
    truth = read_ground_truth(load_json(args.annotations), str(args.annotations))
    tracks, warning = read_predictions(load_json(args.predictions), truth, str(args.predictions), args.strict)
    if warning:
        logging.warning("%s", warning)
    category_ids = video_ids = None
    if args.categories != "all":
        category_ids = subset_category_ids(({"id": i, "name": name} for i, name in truth.categories.items()), args.categories)
        if args.videos == "any":
            video_ids = videos_with_categories(truth, category_ids)
    result = score_tracks(truth, tracks, category_ids, video_ids)
    print(result.summary())
    if args.output_json:
        with atomic_write(args.output_json) as file:
            json.dump(result.stats, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
