#!/usr/bin/env python
"""Prepare data sets: one command each; tools/prepare_data.py COMMAND --help says more."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_api

from solotrack.data.catalog import dataset_metadata
from solotrack.data.mosaic import write_mosaics
from solotrack.data.synthetic import write_synthetic
from solotrack.data.ytvis_split import split_ytvis
from solotrack.engine.cli import add_command, run_tool
from solotrack.files import atomic_write
from solotrack.visualization.contact_sheet import contact_sheet, draw_masks

SYNTHETIC_HELP = """\
Write textured shapes (disc, square, triangle, star) as labelled images (COCO json), labelled test videos and unlabelled
videos (YouTube-VIS json). Objects of one category differ only in texture and colour, and move so far between frames that
the nearest one is often another one. The same seed gives the same files, whatever the number of workers.

A finished folder with the same parameters is left as it is. Look at OUTPUT/contact_sheets afterwards, and at
OUTPUT/stats.json for how hard the videos are to track.

example: python tools/prepare_data.py synthetic --output datasets/synthetic --seed 0
"""

SPLIT_HELP = """\
Hold a part of the labelled videos of YouTube-VIS 2019 out, since the labels of its validation set are not public: OUTPUT/learn.json and
OUTPUT/held_out.json, with frame names relative to DETECTRON2_DATASETS (default: datasets). Videos to hold out are drawn by the seed from
those that show one of the 20 categories whose names COCO has.

example: python tools/prepare_data.py ytvis-split --output datasets/ytvis_split
"""

MOSAIC_HELP = """\
Write mosaics of a labelled set (COCO json) as a labelled set: pictures of 1, 2 x 2 and 3 x 3 of its images in turn. Objects become smaller
and many in a picture, as they are in videos of a street, and every picture trains more of SOLO's grid cells.

example: python tools/prepare_data.py mosaic --annotations people/train.json --images people --output people_mosaic --count 600 --seed 0
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_synthetic(commands)
    _add_split(commands)
    _add_mosaics(commands)
    return result


def main(argv: list[str] | None = None) -> int:
    return run_tool(lambda args: args.run(args), parser(), argv)


def _add_synthetic(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "synthetic", run_synthetic, "draw images and videos of moving shapes", SYNTHETIC_HELP)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--seed", type=int, required=True, metavar="N", help="0 or more; decides every pixel")
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="labelled training images (default: %(default)s)")
    parser.add_argument("--val-images", type=int, default=100, metavar="N", help="labelled validation images (default: %(default)s)")
    parser.add_argument("--videos", type=int, default=40, metavar="N", help="labelled test videos (default: %(default)s)")
    parser.add_argument("--unlabelled-videos", type=int, default=40, metavar="N", help="videos without labels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=20, metavar="N", help="frames a video, 2 or more (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, metavar="PX", help="height of an image (default: %(default)s)")
    parser.add_argument("--aspect", type=float, default=1.0, metavar="X", help="width / height (default: %(default)s)")
    parser.add_argument("--speed", type=float, default=0.8, metavar="X", help="factor on the motion in the videos (default: %(default)s)")
    parser.add_argument(
        "--shift",
        type=float,
        default=0.6,
        metavar="X",
        help="how unlike the images the videos look: 0 = alike, up to 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--light",
        type=float,
        default=0.0,
        metavar="X",
        help="how uneven the light in the videos is, in stops, up to 2 (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: %(default)s, the number of cores)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace synthetic data made with other parameters")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_split(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "ytvis-split", run_split, "hold labelled videos of YouTube-VIS 2019 out", SPLIT_HELP)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the two files")
    parser.add_argument("--held-out", type=int, default=300, metavar="N", help="videos to hold out (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice (default: %(default)s)")


def run_split(args: argparse.Namespace) -> None:
    """Write the two halves of YouTube-VIS's training set."""
    metadata = dataset_metadata("ytvis_2019_train")
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    learn, held_out = split_ytvis(metadata.json_file, metadata.image_root, args.output, root, args.held_out, seed=args.seed)
    print(f"{args.output}: {learn} videos to learn from, {held_out} held out")


def _add_mosaics(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "mosaic", run_mosaic, "mosaics of a labelled set", MOSAIC_HELP)
    parser.add_argument("--annotations", required=True, metavar="FILE", help="COCO json")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder its file names are relative to")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make: train.json, images/")
    parser.add_argument("--count", type=int, default=600, metavar="N", help="mosaics (default: %(default)s)")
    parser.add_argument("--seed", type=int, required=True, metavar="N", help="of what is put where")
    parser.add_argument("--height", type=int, default=384, metavar="PX", help="of a mosaic (default: %(default)s)")
    parser.add_argument("--width", type=int, default=512, metavar="PX", help="of a mosaic (default: %(default)s)")


def run_mosaic(args: argparse.Namespace) -> None:
    """Write the mosaics."""
    written = write_mosaics(args.annotations, args.images, args.output, args.count, args.seed, (args.height, args.width))
    print(f"{args.output}: {written['images']} mosaics with {written['objects']} objects")


def run_synthetic(args: argparse.Namespace) -> None:
    """Write the data set and its contact sheets; what is there already stays."""
    not_parameters = ("command", "run", "quiet")
    parameters = {name: value for name, value in vars(args).items() if name not in not_parameters}
    written = write_synthetic(**parameters, progress=not args.quiet)
    for split, draw in (("train", image_sheet), ("test", video_sheet)):
        path = args.output / "contact_sheets" / f"{split}.png"
        if (args.output / f"{split}.json").exists() and not path.exists():
            sheet = draw(args.output, split)
            with atomic_write(path, "wb") as file:
                file.write(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    print(f"{args.output}: {'written' if written else 'already there, with these parameters'}")
    difficulty = json.loads((args.output / "stats.json").read_text()).get("test")
    if difficulty:
        print(
            f"test videos: {difficulty['links']} links, nearest centre finds {difficulty['nearest_centre_accuracy']:.0%}, "
            f"mask IoU {difficulty['iou_accuracy']:.0%} of them"
        )


def image_sheet(folder: Path, split: str, rows: int = 6, columns: int = 10) -> np.ndarray:
    """The first labelled images with their masks; colours tell the objects of an image apart."""
    data = json.loads((folder / f"{split}.json").read_text())
    pictures = []
    for record in data["images"][: rows * columns]:
        objects = [annotation["segmentation"] for annotation in data["annotations"] if annotation["image_id"] == record["id"]]
        pictures.append(_outline(folder / split / record["file_name"], objects, range(len(objects))))
    return contact_sheet([pictures[start : start + columns] for start in range(0, len(pictures), columns)])


def video_sheet(folder: Path, split: str, rows: int = 10, columns: int = 10) -> np.ndarray:
    """The first frames of the first videos, a video a row; an identity keeps its colour."""
    data = json.loads((folder / f"{split}.json").read_text())
    names = {category["id"]: category["name"] for category in data["categories"]}
    strips, captions = [], []
    for record in data["videos"][:rows]:
        tracks = [annotation for annotation in data["annotations"] if annotation["video_id"] == record["id"]]
        strip = []
        for t, name in enumerate(record["file_names"][:columns]):
            seen = [(number, track["segmentations"][t]) for number, track in enumerate(tracks) if track["segmentations"][t]]
            strip.append(_outline(folder / "videos" / split / name, [segment for _, segment in seen], [number for number, _ in seen]))
        strips.append(strip)
        captions.append(f"video {record['id']}: " + ", ".join(names[track["category_id"]] for track in tracks))
    return contact_sheet(strips, captions)


def _outline(path: Path, segments: list[dict], identities: list[int] | range) -> np.ndarray:
    """The picture at double size with its masks outlined."""
    image = cv2.imread(str(path))[..., ::-1]
    masks = np.moveaxis(mask_api.decode(segments), 2, 0) if segments else np.zeros((0, *image.shape[:2]), np.uint8)
    return draw_masks(image.repeat(2, 0).repeat(2, 1), masks.repeat(2, 1).repeat(2, 2), identities, alpha=0.0)


if __name__ == "__main__":
    sys.exit(main())
