#!/usr/bin/env python3
"""Compare distance linking, IoU linking and SOLO-Track on the same detections of the same videos.

  tools/compare_trackers.py --config-file C.yaml --weights model_final.pth --dataset synthetic_test --output out

The network runs once; every tracker sees its detections. Writes out/comparison.md, out/comparison.json (percent) and each tracker's
results.json.
Words after the options are config overrides: KEY VALUE KEY VALUE ...
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import json
import os
import sys

from detectron2.modeling import build_model
from tabulate import tabulate

from solotrack.config import ConfigError, check_device, load_config
from solotrack.data.catalog import register_custom
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.cli import add_config_options, config_words, run_tool
from solotrack.engine.comparison import TRACKERS, compare_trackers
from solotrack.files import atomic_write

COLUMNS = ("AP", "AP50", "AP75", "AR1", "AR10")


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
    add_config_options(result)
    return result


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, config_words(args))
    check_device(cfg)
    register_custom(cfg)
    if not args.dataset and not cfg.DATASETS.TEST:
        raise ConfigError("Name the videos to compare on: --dataset, or DATASETS.TEST in the config.")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    model = build_model(cfg)
    AtomicCheckpointer(model).load_for_inference(cfg.MODEL.WEIGHTS)
    rows = compare_trackers(cfg, model.eval(), dataset, args.output, {name: TRACKERS[name] for name in args.tracker or TRACKERS})
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


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
