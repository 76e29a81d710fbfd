#!/usr/bin/env python3
"""Draw tracks from files, for a person to look at: YouTube-VIS results over their videos, an identity keeps its colour.

a contact sheet    tools/draw_results.py --annotations test.json --predictions results.json --sheet tracks.png    (a row a video)
a video            tools/draw_results.py --annotations test.json --predictions results.json --mp4 tracks.mp4 --video 3
the truth          tools/draw_results.py --annotations test.json --sheet truth.png
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

import cv2
import numpy as np

from solotrack.data.annotation_file import DatasetError, read_annotation_file
from solotrack.data.frames import read_frame_image
from solotrack.data.ytvis import load_ytvis
from solotrack.engine.cli import run_tool
from solotrack.evaluation.ytvis_format import load_json, read_ground_truth, read_predictions
from solotrack.files import atomic_write
from solotrack.ops.masks import resize_mask
from solotrack.ops.rle import decode_rle
from solotrack.visualization.contact_sheet import contact_sheet, draw_masks
from solotrack.visualization.video_writer import VideoWriter


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument(
        "--annotations", required=True, metavar="FILE", help="YouTube-VIS json: the videos, and the truth without --predictions"
    )
    result.add_argument("--predictions", metavar="FILE", help="results.json, or a zip that holds it")
    result.add_argument("--frames", metavar="DIR", help="folder that frame names are relative to (default: the folder of --annotations)")
    result.add_argument("--sheet", metavar="PNG", help="write a contact sheet")
    result.add_argument("--mp4", metavar="MP4", help="write a video of one video (--video)")
    result.add_argument("--video", type=int, nargs="+", metavar="ID", help="video ids (default: the first six; the first for --mp4)")
    result.add_argument("--columns", type=int, default=10, metavar="N", help="frames of a video on the sheet, evenly spread (default: 10)")
    result.add_argument("--score-thresh", type=float, default=0.3, metavar="S", help="leave out weaker tracks (default: 0.3)")
    result.add_argument("--fps", type=float, default=5, metavar="F", help="of the mp4 (default: 5)")
    return result


def load_tracks(args: argparse.Namespace) -> dict[int, list[dict]]:
    """Video id -> tracks with ``segmentations``, weak predictions left out."""
    data = load_json(args.annotations)
    truth = read_ground_truth(data, args.annotations, require_annotations=not args.predictions)
    tracks = truth.tracks
    if args.predictions:
        tracks, _ = read_predictions(load_json(args.predictions), truth, args.predictions)
        tracks = [t for t in tracks if t.score >= args.score_thresh]
    by_video: dict[int, list[dict]] = {}
    for track in tracks:
        by_video.setdefault(track.video_id, []).append(track)
    return by_video


def draw(video: dict, tracks: list, index: int) -> np.ndarray:
    image = read_frame_image(video["file_names"][index], "RGB")
    present = [(number, t.rles[index]) for number, t in enumerate(tracks, 1) if index < len(t.rles) and t.rles[index]]
    masks = np.zeros((len(present), *image.shape[:2]), dtype=bool)
    for mask, (_, rle) in zip(masks, present, strict=True):  # at the video's size, which may not be every frame's
        mask[:] = resize_mask(decode_rle(rle, *rle["size"]), *image.shape[:2])
    return draw_masks(image, masks, [number for number, _ in present], alpha=0.35)


def run(args: argparse.Namespace) -> None:
    if not args.sheet and not args.mp4:
        raise DatasetError("Say what to write: --sheet FILE.png, --mp4 FILE.mp4, or both.")
    if args.columns < 1 or not 0 < args.fps < math.inf:
        raise DatasetError("--columns must be at least 1, and --fps greater than 0 and finite.")
    read_annotation_file(args.annotations, required=("videos",))
    videos = {v["video_id"]: v for v in load_ytvis(args.annotations, args.frames or os.path.dirname(os.path.abspath(args.annotations)))}
    unknown = sorted(set(args.video or []) - set(videos))
    if unknown:
        raise DatasetError(f"{args.annotations} has no video {unknown[0]}; its ids are {', '.join(map(str, list(videos)[:20]))}.")
    tracks = load_tracks(args)
    if args.sheet:
        rows, captions = [], []
        for identity in args.video or list(videos)[:6]:
            video = videos[identity]
            shown = np.unique(np.linspace(0, video["length"] - 1, args.columns).round().astype(int))
            rows.append([draw(video, tracks.get(identity, []), index) for index in shown.tolist()])
            captions.append(f"video {identity}: {len(tracks.get(identity, []))} tracks, frames {', '.join(map(str, shown))}")
        sheet = contact_sheet(rows, captions)
        with atomic_write(args.sheet, "wb") as file:
            file.write(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    if args.mp4:
        identity = (args.video or list(videos))[0]
        with VideoWriter(Path(args.mp4), fps=args.fps) as writer:
            for index in range(videos[identity]["length"]):
                writer.write(draw(videos[identity], tracks.get(identity, []), index))


def main(argv: list[str] | None = None) -> int:
    return run_tool(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
