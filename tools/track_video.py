#!/usr/bin/env python3
"""Find and track the instances of a video, without any labels of it.

  a video file     tools/track_video.py --config-file C.yaml --weights model_final.pth --input clip.mp4 --output out
  a folder         tools/track_video.py ... --input frames/ --fps 6        (images in natural order: f2.jpg before f10.jpg)
  a pattern        tools/track_video.py ... --input 'frames/*_left.png'    (quoted)
  a camera         tools/track_video.py ... --input camera:0               (Ctrl-C ends it)

It writes to the output folder, once the video is through, Ctrl-C was pressed or a frame cannot be read:
  overlay.mp4      the frames with masks and labels "#identity class score"; an identity keeps its colour
  results.json     the tracks in YouTube-VIS' result format: [{video_id, category_id, score, segmentations: an RLE or null a frame}, ...]
  video.json       the video and the category names that results.json refers to, in YouTube-VIS' format
  tracks.csv       a row for each track in each frame: frame, time_s, track_id, category, score, x1, y1, x2, y2, area (pixels)

Frames are read, tracked and drawn as a stream, so a video may be of any length (by SeqTracker, which looks at the whole video first, they
are read twice). Too many weak detections: raise --score-thresh.
Identities that swap or split: see TRACKER_HEADS in solotrack/config/defaults.py. Too little memory: lower TEST.FRAMES_PER_BATCH.
Words after the options are config overrides: KEY VALUE KEY VALUE ...
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import logging
import math
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from solotrack.config import ConfigError, check_device, load_config
from solotrack.data.catalog import register_custom
from solotrack.data.frames import FrameError, FrameSource, open_frames
from solotrack.engine.cli import add_config_options, config_words, run_tool
from solotrack.engine.predictor import VideoPredictor, VideoTracks
from solotrack.visualization.overlay import draw_tracks, readable_zoom
from solotrack.visualization.video_writer import VideoWriter

_DEFAULT_FPS = 10.0  # of an overlay whose frames come without a rate


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--input", required=True, metavar="VIDEO", help="video file, folder of images, quoted pattern, image, or camera:0")
    result.add_argument("--output", required=True, metavar="DIR", help="folder for the results; made if need be, files in it are replaced")
    result.add_argument("--fps", type=float, metavar="F", help="frames a second of the video read (default: its own, or 10 for images)")
    result.add_argument("--every", type=int, default=1, metavar="K", help="take every K-th frame only")
    result.add_argument("--max-frames", type=int, metavar="N", help="stop after N frames taken")
    result.add_argument(
        "--score-thresh", type=float, metavar="S", help="score a detection needs to be tracked (TRACKER_HEADS.SCORE_THRESH)"
    )
    result.add_argument("--tracker", metavar="NAME", help="EmbeddingTracker, DistanceTracker, IoUTracker, ... (TRACKER_HEADS.TRACKER_NAME)")
    result.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
    result.add_argument("--no-overlay", action="store_true", help="write no overlay.mp4")
    add_config_options(result, "the config the weights were trained with, e.g. config.yaml beside them")
    return result


def config_from(args: argparse.Namespace) -> CfgNode:
    """The config with the options' values in it; they win over those of KEY VALUE."""
    overrides = ["MODEL.DEVICE", "cuda" if torch.cuda.is_available() else "cpu", *config_words(args)]
    for key, value in (
        ("MODEL.DEVICE", args.device),
        ("TRACKER_HEADS.SCORE_THRESH", args.score_thresh),
        ("TRACKER_HEADS.TRACKER_NAME", args.tracker),
    ):
        if value not in (None, ""):
            overrides += [key, value]
    return load_config(args.config_file, overrides)


@contextmanager
def stop_on_interrupt() -> Iterator[list[bool]]:
    """Let the first Ctrl-C ask for an orderly end (the list yielded becomes non-empty) and a second one end the program at once."""
    asked: list[bool] = []

    def ask(number: int, frame: object) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def track_video(
    predictor: VideoPredictor, source: FrameSource, output: Path, fps: float | None = None, overlay: bool = True
) -> VideoTracks:
    """Track a video and write its files to ``output``; ``fps`` where the source has none, or another one.

    Raises:
        FrameError: a frame cannot be read; the files hold what comes before it.
    """
    fps = fps or source.fps
    collector = predictor.collector(fps)
    zoom, failure = 0, None
    with (
        stop_on_interrupt() as stop,
        VideoWriter(output / "overlay.mp4", fps or _DEFAULT_FPS) as writer,
        tqdm(total=source.length, unit="frame") as bar,
    ):
        try:
            for frame, instances in predictor.stream(source, collector, lambda: bool(stop)):
                if overlay:
                    image = frame.image if source.image_format == "RGB" else frame.image[..., ::-1]
                    zoom = zoom or readable_zoom(*image.shape[:2])
                    writer.write(draw_tracks(image, instances, predictor.class_names, zoom=zoom))
                bar.update()
        except FrameError as error:
            if bar.n == 0:
                raise
            failure = error
        if stop or failure:
            bar.write(f"Stopped after {bar.n} frames; writing what is there.")
    tracks = collector.finish()
    tracks.save_results(output / "results.json")
    tracks.save_video_json(output / "video.json")
    tracks.save_csv(output / "tracks.csv")
    if failure:
        raise FrameError(f"{failure} The {tracks.length} frames before it are tracked in {output}.")
    return tracks


def check_output(output: Path, overlay: bool) -> None:
    """Find out before a long video, and not after it, that its files cannot be written.

    Raises:
        ConfigError: a folder bears the name of one of them.
        OSError: nothing can be written to ``output``.
    """
    for name in ["results.json", "video.json", "tracks.csv", *(["overlay.mp4"] if overlay else [])]:
        if (output / name).is_dir():
            raise ConfigError(f"{output / name} is a folder where a file of that name is to be written; give another --output.")
    with tempfile.TemporaryFile(dir=output):
        pass


def run(args: argparse.Namespace) -> None:
    if args.every < 1 or (args.max_frames is not None and args.max_frames < 1) or (args.fps is not None and not 0 < args.fps < math.inf):
        raise ConfigError("--every and --max-frames must be at least 1, and --fps greater than 0 and finite.")
    cfg = config_from(args)
    check_device(cfg)
    register_custom(cfg)
    source = open_frames(
        args.input, cfg.INPUT.FORMAT, every=args.every, max_frames=args.max_frames
    )  # wrong paths show before the model is built
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    check_output(output, not args.no_overlay)
    try:
        tracks = track_video(VideoPredictor(cfg), source, output, args.fps / args.every if args.fps else None, not args.no_overlay)
    except torch.OutOfMemoryError:
        raise ConfigError("The GPU's memory is not enough; lower TEST.FRAMES_PER_BATCH or INPUT.MIN_SIZE_TEST.") from None
    print(f"{len(tracks.tracks)} tracks in {tracks.length} frames -> {output}")


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    return run_tool(run, parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
