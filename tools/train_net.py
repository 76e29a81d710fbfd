#!/usr/bin/env python3
"""Train or evaluate SOLO-Track.

  train            tools/train_net.py --config-file projects/quickstart/configs/solo_track.yaml
  on 8 GPUs        tools/train_net.py --config-file ... --num-gpus 8
  continue         tools/train_net.py --config-file ... --resume
  evaluate         tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/quickstart/model_final.pth

Words after the options are config overrides: KEY VALUE KEY VALUE ... All keys with defaults and sources: solotrack/config/defaults.py.
Results, checkpoints, TensorBoard events and the config in force go to OUTPUT_DIR.
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import sys

from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from solotrack.config import check_device, load_config
from solotrack.data.catalog import check_test_categories, model_class_names, register_custom
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.cli import FAULTS, print_fault, run_tool
from solotrack.engine.evaluation import evaluate
from solotrack.engine.trainer import Trainer


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--config-file", default="", metavar="FILE", help="yaml file; see projects/*/configs")
    result.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR, step for step as if never stopped"
    )
    result.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS on DATASETS.TEST and stop")
    result.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes on this machine, one a GPU (without GPUs: CPU processes)"
    )
    result.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines taking part")
    result.add_argument("--machine-rank", type=int, default=0, metavar="I", help="number of this machine, from 0")
    result.add_argument("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0; 'auto' on one machine")
    result.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, after all options")
    return result


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    check_device(cfg)
    register_custom(cfg)
    check_test_categories(cfg)
    cfg.DATASETS.CLASS_NAMES = model_class_names(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="solotrack")
    if args.eval_only:
        model = Trainer.build_model(cfg)
        AtomicCheckpointer(model, cfg.OUTPUT_DIR).load_for_inference(cfg.MODEL.WEIGHTS)
        evaluate(cfg, model)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def work(args: argparse.Namespace) -> None:
    """``run`` in one of the processes."""
    try:
        run(args)
    except FAULTS as error:
        print_fault(error)
        raise SystemExit(2) from None


def start(args: argparse.Namespace) -> None:
    check_device(load_config(args.config_file, args.opts), args.num_gpus)  # what is wrong shows before any process starts
    try:
        launch(work, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
    except ProcessExitedException as stopped:
        raise SystemExit(stopped.exit_code) from None


def main(argv: list[str] | None = None) -> int:
    hint = "Stopped. The same command with --resume continues from the last checkpoint in OUTPUT_DIR."
    return run_tool(start, parser(), argv, interrupted=hint)


if __name__ == "__main__":
    sys.exit(main())
