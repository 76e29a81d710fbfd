#!/usr/bin/env python3
"""Calibrate a checkpoint's null logit: how unlike every track an object must be to count as new. Needs no labelled videos.

  tools/calibrate.py --config-file C.yaml --weights model_final.pth --output calibrated.pth

Training does this before each checkpoint. Run it for weights from elsewhere, after changing TRACKER_HEADS.METRIC, SCALE or
CALIBRATION.* (NEW_SHARE 0.1 suits tracks of ten frames and more, DISTRACTORS 5 videos whose objects come and go), or for other
images (DATASETS.TRAIN): two views of an image stand for two frames, and objects hidden from the first are the new ones.
Where videos look unlike the images, calibrate on unlabelled videos instead:

  tools/calibrate.py ... TRACKER_HEADS.CALIBRATION.SOURCE clips \\
      DATASETS.CUSTOM.CLIPS "[['mine', 'videos/']]" DATASETS.TRAIN_CLIPS "['mine']"

Words after the options are config overrides: KEY VALUE KEY VALUE ...
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import logging
import sys
from pathlib import Path

from detectron2.modeling import build_model

from solotrack.config import ConfigError, check_device, load_config
from solotrack.data.catalog import register_custom
from solotrack.engine.calibration import calibrate_null_logit
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.cli import add_config_options, config_words, run_tool


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write (.pth): these weights, calibrated")
    result.add_argument("--seed", type=int, default=0, metavar="N", help="of the images, views and hidden objects (default: 0)")
    add_config_options(result)
    return result


def run(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = Path(args.output)
    if output.suffix != ".pth":
        raise ConfigError(f"--output is {args.output}; name a file that ends in .pth.")
    if args.seed < 0:
        raise ConfigError("--seed must be at least 0.")
    cfg = load_config(args.config_file, config_words(args))
    if cfg.MODEL.META_ARCHITECTURE != "SOLOTrack" or not cfg.MODEL.SOLO_TRACK.EMB.ENABLED:
        raise ConfigError(
            "There is nothing to calibrate without SOLO-Track's embedding head: MODEL.META_ARCHITECTURE must be SOLOTrack and "
            "MODEL.SOLO_TRACK.EMB.ENABLED True."
        )
    check_device(cfg)
    register_custom(cfg)
    model = build_model(cfg)
    checkpointer = AtomicCheckpointer(model, str(output.parent))
    checkpointer.load_for_inference(cfg.MODEL.WEIGHTS)
    result = calibrate_null_logit(cfg, model, args.seed)
    if result is None:
        calibration = cfg.TRACKER_HEADS.CALIBRATION
        names = cfg.DATASETS.TRAIN_CLIPS if calibration.SOURCE == "clips" else cfg.DATASETS.TRAIN
        raise ConfigError(
            f"Too few objects were found in {calibration.IMAGES} {calibration.SOURCE} of {', '.join(names)}; raise "
            "TRACKER_HEADS.CALIBRATION.IMAGES, or check that the weights detect anything there."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    checkpointer.save(output.stem, tag=False)
    print(f"null logit {result[0]:.3f} ({result[1]:.1%} on the wrong side): {output}")


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
