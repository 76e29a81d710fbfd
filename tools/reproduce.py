#!/usr/bin/env python3
"""Reproduce a table: train what is missing, measure, and write the table with mean and standard error over seeds.

  tools/reproduce.py ablation --output output/ablation --seeds 0 1 2      (distance, IoU, IC and IC + ME, each literal and with two views)

What is done already is not done again, so an interrupted run continues. Cells of the table are independent and run side by side (--jobs).
A folder's logs/ has what each command printed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from solotrack.config import ConfigError
from solotrack.engine.cli import run_tool
from solotrack.engine.plan import Stage, run_plan
from solotrack.files import atomic_write

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """A row of a table: how its model is trained."""

    name: str
    folder: str
    config: str


ABLATION = (
    Row("IC, literal", "ic", "projects/quickstart/configs/ablation/ic.yaml"),
    Row("IC + ME, literal", "ic_me", "projects/quickstart/configs/ablation/ic_me.yaml"),
    Row("IC, one view, cosine and batch (control)", "ic_one_view_control", "projects/quickstart/configs/ablation/ic_one_view_control.yaml"),
    Row("IC, two views", "ic_two_view", "projects/quickstart/configs/ablation/ic_two_view.yaml"),
    Row("IC + ME, two views", "ic_me_two_view", "projects/quickstart/configs/ablation/ic_me_two_view.yaml"),
)


def ablation_plan(output: str, seeds: list[int], data_seed: int) -> list[Stage]:
    """Data, then for each row and seed: train, compare trackers, shift test."""
    data = f"{output}/data/synthetic"

    def tool(name: str, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, f"tools/{name}.py", *arguments)

    stages = [Stage("data", tool("prepare_data", "synthetic", "--output", data, "--seed", str(data_seed)), (f"{data}/stats.json",))]
    for seed in seeds:
        for row in ABLATION:
            cell = f"{row.folder}/seed{seed}"
            folder, weights = f"{output}/{cell}", f"{output}/{cell}/model_final.pth"
            train = tool(
                "train_net", "--config-file", row.config, "--resume", "OUTPUT_DIR", folder, "SEED", str(seed), "DATASETS.TEST", "()"
            )
            model = ("--config-file", row.config, "--weights", weights)
            compare = tool("compare_trackers", *model, "--dataset", "synthetic_test", "--output", folder)
            shift = tool(
                "shift_test", *model, "--images", "synthetic_val", "--videos", "synthetic_test", "--output-json", f"{folder}/shift.json"
            )
            stages += [
                Stage(f"{cell}/train", train, (weights,), ("data",)),
                Stage(f"{cell}/compare", compare, (f"{folder}/comparison.json",), (f"{cell}/train",)),
                Stage(f"{cell}/shift", shift, (f"{folder}/shift.json",), (f"{cell}/train",)),
            ]
    return stages


def _cell(values: list[float], digits: int) -> str:
    """Mean ± standard error."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "not run"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


def ablation_table(output: str, seeds: list[int]) -> str:
    """Markdown of the cells that are there. AP columns are percent, on the same detections within a row."""
    lines = []
    for row in ABLATION:
        cells = [Path(output, row.folder, f"seed{seed}") for seed in seeds]
        cells = [cell for cell in cells if (cell / "comparison.json").exists() and (cell / "shift.json").exists()]
        scores = [json.loads((cell / "comparison.json").read_text()) for cell in cells]
        shifts = [json.loads((cell / "shift.json").read_text()) for cell in cells]
        own, baselines = "SOLO-Track", ("distance", "distance, no gate")
        lines.append(
            [
                row.name,
                *(_cell([s[tracker]["AP"] for s in scores], 1) for tracker in (*baselines, "IoU", own, "SOLO-Track + cues")),
                _cell([s[own]["AP"] - max(s[tracker]["AP"] for tracker in baselines) for s in scores], 1),
                *(_cell([s[own][key] for s in scores], 1) for key in ("AP50", "AR10")),
                _cell([s["videos"]["new_object_auc"] for s in shifts], 3),
                _cell([s["videos"]["match"] for s in shifts], 3),
                _cell([s["shift"]["match"] for s in shifts], 3),
                _cell([s["shift"]["distance"] for s in shifts], 3),
            ]
        )
    headers = [
        "training",
        "AP distance",
        "AP distance, no gate",
        "AP IoU",
        "AP embedding",
        "AP + cues",
        "gain over distance",
        "AP50",
        "AR10",
    ]
    headers += ["new-object AUC", "match, videos", "match, shift test", "nearest centre, shift test"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def run_ablation(args: argparse.Namespace) -> None:
    stages = ablation_plan(args.output, args.seeds, args.data_seed)
    os.environ["DETECTRON2_DATASETS"] = f"{args.output}/data"
    missing = [stage for stage in stages if not stage.done]
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    try:
        with tqdm(total=len(missing), unit="stage", desc="ablation") as bar:

            def report(stage: Stage, outcome: str) -> None:
                if stage in missing:
                    bar.update()
                    bar.write(f"{stage.name}: {outcome}")

            run_plan(stages, f"{args.output}/logs", args.jobs, threads, report)
    finally:
        table = ablation_table(args.output, args.seeds)
        with atomic_write(f"{args.output}/ablation.md") as file:
            file.write(table + "\n")
        print(f"\n{table}\n\nmean ± standard error over seeds {', '.join(map(str, args.seeds))}; {args.output}/ablation.md")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = result.add_subparsers(required=True, metavar="TABLE")
    ablation = tables.add_parser("ablation", help="image losses on synthetic data; hours on two cores")
    ablation.add_argument("--output", default="output/ablation", metavar="DIR", help="folder for everything (default: output/ablation)")
    ablation.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of weights and batches (default: 0 1 2)")
    ablation.add_argument("--data-seed", type=int, default=0, metavar="N", help="of the synthetic data (default: 0)")
    ablation.add_argument("--jobs", type=int, default=2, metavar="N", help="commands run side by side (default: 2)")
    ablation.set_defaults(run=run_ablation)
    return result


def run(args: argparse.Namespace) -> None:
    if args.jobs < 1 or min(args.seeds) < 0:
        raise ConfigError("--jobs must be at least 1, and --seeds at least 0.")
    args.output = os.path.abspath(args.output)
    os.chdir(ROOT)
    args.run(args)


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv, interrupted="Stopped; run the same command again to continue from there.")


if __name__ == "__main__":
    sys.exit(main())
