#!/usr/bin/env python3
"""SoloTrack in minutes: make synthetic data, train on its labelled images, compare trackers on its videos, draw a tracked video.

Every step is a command that is printed and can be run by itself. A step that is done is not done again; an interrupted one continues.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from solotrack.engine.cli import run_tool
from solotrack.engine.plan import Stage, run_stage

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "projects/quickstart/configs/solo_track.yaml"


def plan(output: str, seed: int, config: str = CONFIG, data_options: str = "") -> list[Stage]:
    """The steps, in order.

    Args:
        output: folder for everything.
        seed: of the data.
        config: yaml file of the model and its training.
        data_options: more words for ``prepare_data.py synthetic``.
    """
    data, weights = f"{output}/data/synthetic", f"{output}/model_final.pth"
    model = f"--config-file {config} --weights {shlex.quote(weights)}"

    def step(name: str, command: str, written: str) -> Stage:
        tool, *arguments = shlex.split(command)
        return Stage(name, (sys.executable, f"tools/{tool}.py", *arguments), (f"{output}/{written}",))

    quoted_output, quoted_data = shlex.quote(output), shlex.quote(data)
    results = f"{quoted_output}/comparison/SOLO-Track/results.json"
    truth = f"--annotations {quoted_data}/test.json --frames {quoted_data}/videos/test"
    return [
        step(
            "data", f"prepare_data synthetic --output {quoted_data} --seed {seed} {data_options}", "data/synthetic/contact_sheets/test.png"
        ),
        step("train", f"train_net --config-file {config} --resume OUTPUT_DIR {quoted_output}", "model_final.pth"),
        step("compare", f"compare_trackers {model} --output {quoted_output}/comparison", "comparison/comparison.md"),
        step(
            "sheet",
            f"draw_results {truth} --predictions {results} --sheet {quoted_output}/contact_sheet.png",
            "contact_sheet.png",
        ),
        step(
            "track", f"track_video {model} --input {quoted_data}/videos/test/0001 --output {quoted_output}/tracked", "tracked/overlay.mp4"
        ),
    ]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--output", default="output/quickstart", metavar="DIR", help="folder for everything (default: output/quickstart)")
    result.add_argument("--seed", type=int, default=0, metavar="N", help="of the data (default: 0)")
    return result


def run(args: argparse.Namespace) -> None:
    output = os.path.abspath(args.output)
    os.chdir(ROOT)
    output = os.path.relpath(output) if Path(output).is_relative_to(ROOT) else output
    os.environ["DETECTRON2_DATASETS"] = f"{output}/data"
    start = time.monotonic()
    stages = plan(output, args.seed)
    for number, stage in enumerate(stages, 1):
        print(f"\n[{number}/{len(stages)}] {stage.name}{': done before' if stage.done else ''}")
        print(f"  $ DETECTRON2_DATASETS={output}/data {shlex.join(stage.command)}\n", flush=True)
        run_stage(stage)
    print(f"\n{Path(output, 'comparison', 'comparison.md').read_text(encoding='utf-8')}")
    print(f"{(time.monotonic() - start) / 60:.1f} minutes. Look at:")
    for path in ("comparison/comparison.md", "contact_sheet.png", "tracked/overlay.mp4", "data/synthetic/contact_sheets/test.png"):
        print(f"  {output}/{path}")


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv, interrupted="Stopped; run the same command again to continue from there.")


if __name__ == "__main__":
    sys.exit(main())
