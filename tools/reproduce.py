#!/usr/bin/env python3
"""Reproduce a table: train what is missing, measure, and write the table with mean and standard error over seeds.

  tools/reproduce.py table1 --data synthetic --seeds 0 1 2       what each part adds: distance, IC, IC + ME, + video
  tools/reproduce.py table2 --data synthetic --seeds 0 1 2       2, 3 and 4 frames in the cycle
  tools/reproduce.py table3 --data synthetic --seeds 0 1 2       other systems, with and without post-processing; + adaptation
  tools/reproduce.py table1 --data coco-ytvis                    at full size, where the data and the GPUs are; else what each line needs
  tools/reproduce.py plus --seeds 0 1 2                          what goes beyond the paper, one knob at a time, on synthetic data
  tools/reproduce.py ablation --seeds 0 1 2                      image losses on synthetic data

What is done already is not done again, so an interrupted run continues, and tables in one folder share their trainings. Commands run
side by side (--jobs); logs/ has what each printed. --dry-run prints the plan. A smoke run of minutes:

  tools/reproduce.py table1 --seeds 0 --output output/smoke --data-options "--images 40 --val-images 10 --videos 2 --unlabelled-videos 2" \\
      --override SOLVER.MAX_ITER 20 TRACKER_HEADS.CALIBRATION.IMAGES 20
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import fnmatch
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from solotrack.config import ConfigError
from solotrack.engine.cli import run_tool
from solotrack.engine.plan import Stage, folder_lock, obstacles, outdated, run_plan, unfinished, visible_gpus
from solotrack.errors import SoloTrackError
from solotrack.files import atomic_write
from solotrack.reproduce.definition import Table
from solotrack.reproduce.planning import Run, logs_folder, table_plan
from solotrack.reproduce.plots import plot_ap, plot_losses
from solotrack.reproduce.report import as_html, as_markdown
from solotrack.reproduce.results import (
    changed_commands,
    changed_settings,
    check_begun,
    check_settings,
    fillable,
    measured_settings,
    note_command,
    table_results,
)
from solotrack.reproduce.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent


def describe(table: Table, run: Run, stages: list[Stage], gpus: int) -> str:
    """The plan: each stage, what it needs and how it stands."""
    to_run = {stage.name for stage in unfinished(stages, fillable(table, run, stages, gpus))}
    wanted = {stage.name for stage in unfinished(stages)}
    lines = []
    for stage in stages:
        lacking = obstacles([stage], gpus)
        if stage.done:
            state = "done"
        elif stage.name in to_run:
            state = "missing"
        elif stage.name not in wanted:
            state = "not needed any more"
        else:
            waits = "left out (--only)" if run.only else "waits for what cannot run here"
            state = f"cannot run here: needs {', '.join(lacking)}" if lacking else waits
        lines.append([stage.name, ", ".join(stage.needs), stage.gpus or "", f"{stage.hours:.1f}" if stage.hours else "", state])
    text = tabulate(lines, ["stage", "needs", "GPUs", "hours", "state"], tablefmt="github", disable_numparse=True)
    return f"{text}\n\n{len(stages)} stages: {sum(stage.done for stage in stages)} done, {len(to_run)} to run"


def fill(table: Table, run: Run, stages: list[Stage], gpus: list[str], jobs: int) -> None:
    """Run what can be run here, and write the table, also after failures.

    Raises:
        PlanError: another command works in the folder, stages failed, or a training was begun with other settings.
    """
    with folder_lock(run.folder) as lock:
        _fill(table, run, stages, gpus, jobs, lock)


def _fill(table: Table, run: Run, stages: list[Stage], gpus: list[str], jobs: int, lock: int) -> None:
    targets = fillable(table, run, stages, len(gpus))
    check_begun(table, run, stages, targets)
    settings = {stage.name: measured_settings(stage) for stage in unfinished(stages, targets)}  # as they are now, not when it is done
    outcomes: dict[str, str] = {}
    try:
        with tqdm(total=len(unfinished(stages, targets)), unit="stage", desc=table.name, disable=not targets) as bar:

            def report(stage: Stage, outcome: str) -> None:
                outcomes[stage.name] = outcome
                if outcome == "done":
                    note_command(run, stage, settings[stage.name])
                bar.write(f"{stage.name}: {outcome}")
                bar.update()

            threads = max(1, (os.cpu_count() or 1) // jobs)
            run_plan(stages, logs_folder(run), jobs, threads, report, gpus, targets, (lock,))
    finally:
        failed = sys.exc_info()[1] is not None
        try:
            print(f"\n{write(table, run, stages, len(gpus), outcomes)}\n{run.folder}/{table.name}.md, .html and .png")
        except (OSError, SoloTrackError) as error:
            if not failed:
                raise
            print(f"The table was not written: {error}", file=sys.stderr)


def _made(stage: Stage) -> str:
    """What has to go so that a finished stage runs again from its start: of a training its whole folder."""
    return os.path.dirname(stage.outputs[0]) if stage.name.endswith("/train") else stage.outputs[0]


def write(table: Table, run: Run, stages: list[Stage], gpus: int, outcomes: Mapping[str, str]) -> str:
    """Write what is there as markdown, HTML and pictures; returns the markdown."""
    results = table_results(table, run, stages, gpus, outcomes)
    warnings = changed_settings(table, run) + changed_commands(run, stages)
    warnings += [
        f"{stage.name} is older than {need.name}, which it was made from; remove {_made(stage)} to make it again."
        for stage, need in outdated(stages)
    ]
    pictures = {f"{table.name}.png": plot_ap(table, results), f"{table.name}_losses.png": plot_losses(table, run)}
    pictures = {name: picture for name, picture in pictures.items() if picture}
    for name, picture in pictures.items():
        with atomic_write(os.path.join(run.folder, name), "wb") as file:
            file.write(picture)
    markdown = as_markdown(table, results, run, warnings)
    page = as_html(table, results, run, warnings, list(pictures))
    for suffix, text in (("md", markdown), ("html", page)):
        with atomic_write(os.path.join(run.folder, f"{table.name}.{suffix}")) as file:
            file.write(text)
    return markdown


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="output/tables", metavar="DIR", help="folder for everything (default: output/tables)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of weights and batches (default: 0 1 2)")
    parser.add_argument(
        "--data-seed", type=int, default=0, metavar="N", help="of synthetic data; others than 0 have a folder of their own (default: 0)"
    )
    parser.add_argument(
        "--data-options",
        default="",
        metavar="WORDS",
        help='for prepare_data.py synthetic, all sets, also the labelled videos that baselines learn from; e.g. "--images 40 --videos 2"',
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="a full-size training takes at most (default: 8; the batch stays the same)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="run lines of these trainings alone, e.g. '*_two_view' (quoted; default: all)",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="commands run side by side (default: 2)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--override",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config overrides of every training and measurement; takes the rest of the line",
    )


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(required=True, metavar="TABLE", dest="table")
    for (data, name), table in TABLES.items():
        if data == "synthetic":  # every table is there in miniature
            command = commands.add_parser(name, help=f"{table.title}; hours on two cores")
            kinds = [kind for kind, other in TABLES if other == name]
            command.add_argument("--data", choices=kinds, default="synthetic", help="default: synthetic")
            add_options(command)
    return result


def folder_of(args: argparse.Namespace) -> str:
    """Tables of other data or other trainings have a folder of their own in that of the first."""
    setting = TABLES[args.data, args.table].setting
    own = f"data_seed{args.data_seed}" if setting.seeded and args.data_seed else ""
    return os.path.join(os.path.abspath(args.output), setting.folder, own).rstrip(os.sep)


def data_options_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Words of --data-options.

    Raises:
        ConfigError: they are not words, say what other options say, or nothing is made.
    """
    try:
        words = tuple(shlex.split(args.data_options))
    except ValueError as error:
        raise ConfigError(f"--data-options {args.data_options}: {error}.") from error
    if words and not TABLES[args.data, args.table].setting.seeded:
        raise ConfigError("--data-options are for synthetic data; this table makes none.")
    for option, instead in (("--seed", "--data-seed"), ("--output", "--output")):
        if any(len(word) > 2 and option.startswith(word.split("=")[0]) for word in words):  # argparse takes beginnings, too
            raise ConfigError(f"--data-options {args.data_options}: say {instead} outside of it.")
    return words


def reproduce(args: argparse.Namespace) -> None:
    if args.jobs < 1 or min(args.seeds) < 0 or args.data_seed < 0 or (args.gpus is not None and args.gpus < 1):
        raise ConfigError("--jobs and --gpus must be at least 1, --seeds and --data-seed at least 0.")
    datasets = os.path.abspath(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", ROOT / "datasets")))
    run = Run(
        folder_of(args),
        tuple(dict.fromkeys(args.seeds)),
        args.data_seed,
        datasets,
        tuple(args.override),
        data_options_of(args),
        args.gpus or sys.maxsize,
        tuple(args.only),
    )
    os.chdir(ROOT)
    table, gpus = TABLES[args.data, args.table], visible_gpus()
    names = list(dict.fromkeys(row.recipe for row in table.rows))
    unknown = [pattern for pattern in run.only if not fnmatch.filter(names, pattern)]
    if unknown:
        raise ConfigError(f"--only {' '.join(unknown)}: no line of {table.name} has such a training; they are {', '.join(names)}.")
    most = max((recipe.gpus for recipe in table.setting.recipes.values()), default=0)
    if most > run.gpus and most % run.gpus:
        shares = ", ".join(str(count) for count in range(1, most + 1) if most % count == 0)
        raise ConfigError(f"--gpus {run.gpus} cannot share the batches out equally, which are made for {most}; take one of {shares}.")
    stages = table_plan(table, run)
    check_settings(table, run, stages)
    if args.dry_run:
        print(describe(table, run, stages, len(gpus)))
    else:
        fill(table, run, stages, gpus, args.jobs)


def main(argv: list[str] | None = None) -> int:
    return run_tool(reproduce, parser(), argv, interrupted="Stopped; run the same command again to continue from there.")


if __name__ == "__main__":
    sys.exit(main())
