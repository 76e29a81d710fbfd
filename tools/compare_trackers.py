#!/usr/bin/env python3
"""Compare distance linking, IoU linking and SOLO-Track on the same detections of the same videos.

  tools/compare_trackers.py --config-file C.yaml --weights model_final.pth --dataset synthetic_test --output out

The network runs once; every tracker sees its detections. Writes out/comparison.md, out/comparison.json (percent) and each tracker's
results.json.
Config overrides: --opts KEY VALUE KEY VALUE ...
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from detectron2.modeling import build_model
from tabulate import tabulate

import solotrack  # noqa: F401  (registers models, trackers and data sets)
from solotrack.config import ConfigError, check_device, load_config
from solotrack.data.annotation_file import DatasetError
from solotrack.data.catalog import register_custom
from solotrack.data.frames import FrameError
from solotrack.engine.checkpoint import AtomicCheckpointer, CheckpointError
from solotrack.engine.comparison import TRACKERS, compare_trackers
from solotrack.evaluation.ytvis_format import YTVISFormatError
from solotrack.files import atomic_write

COLUMNS = ("AP", "AP50", "AP75", "AR1", "AR10")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--config-file", required=True, metavar="FILE", help="the config the weights were trained with")
    result.add_argument("--weights", default="", metavar="FILE", help="checkpoint (default: MODEL.WEIGHTS of the config)")
    result.add_argument("--dataset", metavar="NAME", help="registered videos with annotations (default: the first of DATASETS.TEST)")
    result.add_argument("--output", required=True, metavar="DIR", help="folder for tables and results")
    result.add_argument(
        "--trackers", nargs="+", choices=list(TRACKERS), default=list(TRACKERS), metavar="NAME", help=f"of {', '.join(TRACKERS)}"
    )
    result.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    return result


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, [*args.opts, *(["MODEL.WEIGHTS", args.weights] if args.weights else [])])
    check_device(cfg)
    register_custom(cfg)
    if not args.dataset and not cfg.DATASETS.TEST:
        raise ConfigError("Name the videos to compare on: --dataset, or DATASETS.TEST in the config.")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    model = build_model(cfg)
    AtomicCheckpointer(model).load_for_inference(cfg.MODEL.WEIGHTS)
    rows = compare_trackers(cfg, model.eval(), dataset, args.output, {name: TRACKERS[name] for name in args.trackers})
    table = tabulate(
        [[name, *(f"{values[c]:.1f}" for c in COLUMNS)] for name, values in rows.items()],
        headers=["tracker", *COLUMNS],
        tablefmt="github",
        disable_numparse=True,
    )
    print(f"\n{dataset}, the same detections for every row, percent:\n\n{table}\n")
    for name, text in (("comparison.md", table + "\n"), ("comparison.json", json.dumps(rows, indent=2) + "\n")):
        with atomic_write(os.path.join(args.output, name)) as file:
            file.write(text)


def main() -> None:
    try:
        run(parser().parse_args())
    except (ConfigError, CheckpointError, DatasetError, FrameError, YTVISFormatError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
