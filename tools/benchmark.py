#!/usr/bin/env python3
"""Measure speed: a table with the median and the quartiles over --repeats, and what machine it was.

  tools/benchmark.py mask-rows  --size 800 1344                      mask branch: the rows that are needed against all S^2 maps
  tools/benchmark.py targets    --instances 1 10 50                  assigning ground truths to grid cells
  tools/benchmark.py evaluator  --annotations A.json --predictions R.json     scoring tubes against merely parsing the files
  tools/benchmark.py tracker    --detections 1 10 50                 linking, a frame
  tools/benchmark.py stream     --config-file C.yaml --weights W.pth --input clip.mp4     whole videos, and where the time goes
  tools/benchmark.py adaptation --config-file C.yaml --weights W.pth --input clip.mp4     adapting to a video against tracking it
  tools/benchmark.py train-step --config-file C.yaml --random 800 1344        training, and where the time goes
  tools/benchmark.py video-step --config-file C.yaml --weights W.pth          a step on unlabelled clips against one on the same images

What is compared runs alternately in one process, so that a busy machine slows both; still, publish only what a quiet machine gave (load).
--json FILE keeps every sample. Words after the options are config overrides: KEY VALUE KEY VALUE ...
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import sys
from collections.abc import Callable

import torch
from benchmarks.heads import run_mask_rows, run_targets
from benchmarks.measure import describe_machine
from benchmarks.metric import run_evaluator
from benchmarks.tracking import run_adaptation, run_stream, run_tracker
from benchmarks.training import run_train_step, run_video_step

from solotrack.config import ConfigError, check_device, load_config
from solotrack.engine.cli import run_tool


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable, text: str, config_required: bool = False) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--repeats", type=int, default=10, metavar="N", help="measurements of each (default: 10)")
        command.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
        command.add_argument("--threads", type=int, metavar="N", help="of PyTorch on the CPU (default: its own choice)")
        command.add_argument("--seed", type=int, default=0, metavar="N", help="of made inputs and weights (default: 0)")
        command.add_argument("--json", metavar="FILE", help="write options, machine, table and every sample here")
        text = "yaml file of the model" if config_required else "yaml file (default: SOLO's sizes)"
        command.add_argument("--config-file", default="", required=config_required, metavar="FILE", help=text)
        command.set_defaults(run=run)
        return command

    def size(command: argparse.ArgumentParser, what: str, default: tuple[int, int]) -> None:
        text = f"{what}, pixels (default: {default[0]} {default[1]})"
        command.add_argument("--size", type=int, nargs=2, default=default, metavar=("H", "W"), help=text)

    command = add("mask-rows", run_mask_rows, "mask branch: the rows of the positive cells against all S^2 maps")
    size(command, "padded image", (800, 1344))
    command.add_argument("--batch", type=int, default=2, metavar="N", help="images (default: 2)")
    command.add_argument("--instances", type=int, default=7, metavar="M", help="ground truths an image (default: 7)")
    command = add("targets", run_targets, "assigning ground truths to grid cells")
    size(command, "padded image", (800, 1344))
    command.add_argument("--batch", type=int, default=2, metavar="N", help="images (default: 2)")
    command.add_argument(
        "--instances", type=int, nargs="+", default=[1, 10, 50], metavar="M", help="ground truths an image (default: 1 10 50)"
    )
    command = add("evaluator", run_evaluator, "YouTube-VIS metric, files to numbers, against json.loads of the same files")
    command.add_argument("--annotations", metavar="FILE", help="YouTube-VIS json (default: random tubes)")
    command.add_argument("--predictions", metavar="FILE", help="results.json")
    size(command, "random tubes: frame", (360, 640))
    for name, default, text in (
        ("videos", 100, "videos"),
        ("frames", 27, "frames a video"),
        ("objects", 2, "objects a video"),
        ("tracks", 10, "predictions a video"),
    ):
        command.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"random tubes: {text} (default: {default})")
    command = add("tracker", run_tracker, "every tracker's time for a frame")
    size(command, "frame", (360, 640))
    command.add_argument("--detections", type=int, nargs="+", default=[1, 10, 50], metavar="N", help="in a frame (default: 1 10 50)")
    command.add_argument("--frames", type=int, default=20, metavar="N", help="of a video (default: 20)")
    command.add_argument("--dim", type=int, default=256, metavar="D", help="of an embedding (default: 256)")
    command = add("stream", run_stream, "frames/s of a whole video and the time of each stage", config_required=True)
    command.add_argument("--weights", metavar="FILE", help="checkpoint (default: random weights, which detect little)")
    command.add_argument("--input", metavar="VIDEO", help="video file, folder of images or quoted pattern (default: JPEG files of noise)")
    size(command, "made frames", (480, 854))
    command.add_argument("--frames", type=int, default=32, metavar="N", help="made frames (default: 32)")
    command = add("adaptation", run_adaptation, "test-time adaptation to a video against tracking the video", config_required=True)
    command.add_argument("--weights", metavar="FILE", help="checkpoint (default: random weights, which detect little)")
    command.add_argument("--input", metavar="VIDEO", help="video file, folder of images or quoted pattern (default: JPEG files of noise)")
    size(command, "made frames", (480, 854))
    command.add_argument("--frames", type=int, default=30, metavar="N", help="the first frames that are taken, or made (default: 30)")
    command = add("train-step", run_train_step, "images/s of training and the time of each stage", config_required=True)
    command.add_argument("--weights", metavar="FILE", help="checkpoint or backbone to start from (default: random weights)")
    text = "made images of this size in place of DATASETS.TRAIN"
    command.add_argument("--random", type=int, nargs=2, metavar=("H", "W"), help=text)
    command.add_argument("--instances", type=int, default=7, metavar="M", help="--random: ground truths an image (default: 7)")
    command = add("video-step", run_video_step, "a step on unlabelled clips against one on the same images", config_required=True)
    command.add_argument("--weights", metavar="FILE", help="checkpoint (default: random weights, which have few nodes)")
    text = "clips of noise of this size in place of DATASETS.TRAIN_CLIPS"
    command.add_argument("--random", type=int, nargs=2, metavar=("H", "W"), help=text)
    command.add_argument("--clips", type=int, default=4, metavar="N", help="in the step (default: 4)")
    for command in commands.choices.values():
        command.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return result


def run(args: argparse.Namespace) -> None:
    if args.repeats < 1 or args.seed < 0:
        raise ConfigError("--repeats must be at least 1, and --seed at least 0.")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(load_config("", ["MODEL.DEVICE", args.device]))
    args.device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.machine = describe_machine(args.device)
    torch.manual_seed(args.seed)
    args.run(args)


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
