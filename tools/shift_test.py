#!/usr/bin/env python3
"""Does the embedding follow appearance or location?

Every instance of a labelled image is cut out and put in a random other place; then it is matched with itself by embedding, and
by nearest centre. An embedding that follows appearance matches them all; one that follows location does no better than the nearest centre.

  tools/shift_test.py --config-file C.yaml --weights model_final.pth --images synthetic_val
  tools/shift_test.py ... --images synthetic_val --videos synthetic_test     (also: true instances of consecutive frames of labelled videos)

Columns: match (share matched by embedding), distance (by nearest centre), new AUC (0.5 = a new object looks like a known one, 1 = they
never look alike), null rate (share of new objects under the calibrated null logit), instances, candidates (mean number to choose from).

Words after the options are config overrides: KEY VALUE KEY VALUE ...
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import dataclasses
import json
import sys

from detectron2.modeling import build_model
from tabulate import tabulate

from solotrack.config import ConfigError, check_device, load_config
from solotrack.data.catalog import register_custom
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.cli import add_config_options, config_words, run_tool
from solotrack.engine.embedding_metrics import shift_test, video_association
from solotrack.files import atomic_write


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--images", metavar="NAME", help="registered labelled images, best not those trained on")
    result.add_argument("--videos", metavar="NAME", help="registered labelled videos")
    result.add_argument("--limit", type=int, default=200, metavar="N", help="images taken (default: 200)")
    result.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of images and places (default: 0)")
    result.add_argument("--output-json", metavar="FILE", help="write the numbers here too")
    add_config_options(result)
    return result


def run(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, config_words(args))
    if not cfg.MODEL.SOLO_TRACK.EMB.ENABLED:
        raise ConfigError("The shift test needs an embedding head: MODEL.SOLO_TRACK.EMB.ENABLED True, and weights trained with it.")
    if not args.images and not args.videos:
        raise ConfigError("Name labelled images (--images), labelled videos (--videos), or both.")
    if args.limit < 1 or args.seed < 0:
        raise ConfigError("--limit must be at least 1, and --seed at least 0.")
    check_device(cfg)
    register_custom(cfg)
    model = build_model(cfg)
    AtomicCheckpointer(model).load_for_inference(cfg.MODEL.WEIGHTS)
    results = {}
    if args.images:
        results["shift"] = shift_test(cfg, model, args.images, args.limit, args.seed)
    if args.videos:
        results["videos"] = video_association(cfg, model, args.videos)
    rows = {name: dataclasses.asdict(result) for name, result in results.items()}
    headers = ["", "match", "distance", "new AUC", "null rate", "instances", "candidates"]
    print(tabulate([[name, *row.values()] for name, row in rows.items()], headers=headers, tablefmt="github", floatfmt=".3f"))
    if args.output_json:
        with atomic_write(args.output_json) as file:
            json.dump(rows, file, indent=2)


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
