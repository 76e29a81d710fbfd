#!/usr/bin/env python3
"""SoloTrack in minutes: make synthetic data, train on its labelled images, compare trackers on its videos, draw a tracked video.

Every step is a command that is printed and can be run by itself. A step that is done is not done again; an interrupted one continues.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from solotrack.engine.plan import PlanError, Stage, run_stage

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "projects/quickstart/configs/solo_track.yaml"


def plan(output: str, seed: int) -> list[Stage]:
    """The steps, in order."""

    def tool(name: str, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, f"tools/{name}.py", *arguments)

    data, weights = f"{output}/data/synthetic", f"{output}/model_final.pth"
    truth, video = f"{data}/test.json", f"{data}/videos/test"
    results = f"{output}/comparison/SOLO-Track/results.json"
    model = ("--config-file", CONFIG, "--weights", weights)
    return [
        Stage("data", tool("prepare_data", "synthetic", "--output", data, "--seed", str(seed)), (f"{data}/stats.json",)),
        Stage("train", tool("train_net", "--config-file", CONFIG, "--resume", "OUTPUT_DIR", output, "DATASETS.TEST", "()"), (weights,)),
        Stage("compare", tool("compare_trackers", *model, "--output", f"{output}/comparison"), (f"{output}/comparison/comparison.md",)),
        Stage(
            "sheet",
            tool("draw_results", "--annotations", truth, "--predictions", results, "--sheet", f"{output}/contact_sheet.png"),
            (f"{output}/contact_sheet.png",),
        ),
        Stage(
            "track",
            tool("track_video", *model, "--input", f"{video}/0001", "--output", f"{output}/tracked", "--fps", "5"),
            (f"{output}/tracked/overlay.mp4",),
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="output/quickstart", metavar="DIR", help="folder for everything (default: output/quickstart)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the data (default: 0)")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ["DETECTRON2_DATASETS"] = f"{args.output}/data"
    start = time.monotonic()
    stages = plan(args.output, args.seed)
    try:
        for number, stage in enumerate(stages, 1):
            print(
                f"\n[{number}/{len(stages)}] {stage.name}{': done before' if stage.done else ''}\n  $ {' '.join(stage.command)}\n",
                flush=True,
            )
            run_stage(stage)
    except PlanError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(Path(args.output, "comparison", "comparison.md").read_text(encoding="utf-8"))
    print(f"{(time.monotonic() - start) / 60:.1f} minutes. Look at:")
    for path in ("comparison/comparison.md", "contact_sheet.png", "tracked/overlay.mp4", "data/synthetic/contact_sheets/test.png"):
        print(f"  {args.output}/{path}")


if __name__ == "__main__":
    main()
