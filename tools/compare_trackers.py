#!/usr/bin/env python3
"""Compare distance linking, IoU linking and SOLO-Track on the same detections of the same videos.

  tools/compare_trackers.py --config-file C.yaml --weights model_final.pth --dataset synthetic_test --output out

The network runs once; every tracker sees its detections. Writes out/comparison.md, out/comparison.json (percent) and each tracker's
results.json. With --metrics mot the table has identity metrics by boxes beside tube AP, and with --bootstrap 95 % intervals and the
difference of IDF1 to that of IoU linking (see tools/evaluate.py mot --help).
Where the truth is boxes, add TEST.BOX_TUBES True: tube AP by boxes.
Words after the options are config overrides: KEY VALUE KEY VALUE ...
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import json
import os
import sys

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate

from solotrack.config import ConfigError, check_device, load_config
from solotrack.data.catalog import dataset_metadata, register_custom
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.cli import add_config_options, config_words, run_tool
from solotrack.engine.comparison import TRACKERS, compare_trackers, results_folder
from solotrack.engine.streaming import scored_categories
from solotrack.evaluation.mot import Bootstrap, check_library, paired_difference, score_identities
from solotrack.evaluation.ytvis import scored_videos
from solotrack.evaluation.ytvis_format import load_json, read_ground_truth, read_predictions
from solotrack.files import atomic_write

COLUMNS = {"ytvis": ("AP", "AP50", "AP75", "AR1", "AR10"), "mot": ("AP", "AP50", "IDF1", "HOTA", "DetA", "AssA", "MOTA", "IDSW")}
BASELINE = "IoU"  # the row differences are to; the first row where it is not there


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--dataset", metavar="NAME", help="registered videos with annotations (default: the first of DATASETS.TEST)")
    result.add_argument("--output", required=True, metavar="DIR", help="folder for tables and results")
    result.add_argument(
        "--tracker",
        action="append",
        choices=list(TRACKERS),
        metavar="NAME",
        help=f"a row of the table; may be given several times (default: all of {'; '.join(TRACKERS)})",
    )
    result.add_argument("--metrics", choices=list(COLUMNS), default="ytvis", help="columns of the table (default: %(default)s)")
    result.add_argument("--bootstrap", type=int, default=0, metavar="N", help="with mot: resamples for intervals (default: none)")
    result.add_argument("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    add_config_options(result)
    return result


def run(args: argparse.Namespace) -> None:
    if min(args.bootstrap, args.seed) < 0 or (args.bootstrap and args.metrics != "mot"):
        raise ConfigError("--bootstrap and --seed must be at least 0, and --bootstrap goes with --metrics mot.")
    if args.metrics == "mot":
        check_library()
    cfg = load_config(args.config_file, config_words(args))
    check_device(cfg)
    register_custom(cfg)
    if not args.dataset and not cfg.DATASETS.TEST:
        raise ConfigError("Name the videos to compare on: --dataset, or DATASETS.TEST in the config.")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    model = build_model(cfg)
    AtomicCheckpointer(model).load_for_inference(cfg.MODEL.WEIGHTS)
    rows = compare_trackers(cfg, model.eval(), dataset, args.output, {name: TRACKERS[name] for name in args.tracker or TRACKERS})
    columns = COLUMNS[args.metrics]
    cells = {name: {c: f"{values[c]:.1f}" for c in columns if c in values} for name, values in rows.items()}
    if args.metrics == "mot":
        _add_identities(rows, cells, dataset, cfg, args)
    headers = list(next(iter(cells.values())))
    table = tabulate(
        [[name, *row.values()] for name, row in cells.items()], ["tracker", *headers], tablefmt="github", disable_numparse=True
    )
    print(f"\n{dataset}, the same detections for every row, percent:\n\n{table}\n")
    for name, text in (("comparison.md", table + "\n"), ("comparison.json", json.dumps(rows, indent=2) + "\n")):
        with atomic_write(os.path.join(args.output, name)) as file:
            file.write(text)


def _add_identities(rows: dict[str, dict], cells: dict[str, dict[str, str]], dataset: str, cfg: CfgNode, args: argparse.Namespace) -> None:
    """Add every row's identity metrics, of what AP is of, to its values (percent, counts, intervals) and to its cells of the table."""
    json_file = dataset_metadata(dataset).json_file
    truth = read_ground_truth(load_json(json_file), json_file)
    categories = scored_categories(cfg, dataset)
    videos = scored_videos(truth, categories, cfg.DATASETS.VIDEO_SUBSET)
    bootstrap = Bootstrap(args.bootstrap, seed=args.seed) if args.bootstrap else None
    results = {}
    for name in rows:
        path = os.path.join(results_folder(args.output, name), "results.json")
        tracks, _ = read_predictions(load_json(path), truth, path)
        results[name] = score_identities(truth, tracks, bootstrap=bootstrap, category_ids=categories, video_ids=videos)
    rival = BASELINE if BASELINE in results else next(iter(results))
    for name, result in results.items():
        row, cell = rows[name], cells[name]
        row |= {score: 100 * value for score, value in result.scores.items()} | result.counts
        cell |= {column: f"{row[column]:.1f}" for column in COLUMNS["mot"] if column in result.scores}
        cell["IDSW"] = str(row["IDSW"])
        if bootstrap is None:
            continue
        row["intervals"] = {score: [100 * end for end in ends] for score, ends in result.intervals.items()}
        for column in ("IDF1", "HOTA"):
            cell[column] += " ({:.1f} to {:.1f})".format(*row["intervals"][column])
        row["IDF1 difference"] = [100 * value for value in paired_difference(result, results[rival], "IDF1")]
        cell[f"IDF1 - {rival}'s"] = "" if name == rival else "{:+.1f} ({:+.1f} to {:+.1f})".format(*row["IDF1 difference"])


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
