"""tracker, stream and adaptation: from frames to tracks."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np
from detectron2.modeling import build_model
from detectron2.structures import Instances

from solotrack.config import ConfigError
from solotrack.data.frames import open_frames
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.comparison import TRACKERS
from solotrack.engine.streaming import VideoTracker, record
from solotrack.modeling.meta_arch.solo_track import SOLOTrack
from solotrack.tracking.base import build_tracker
from solotrack.tracking.offline import OfflineTracker

from .inputs import random_detections, write_random_frames
from .measure import Stages, alternate, config, count_syncs, ratio, report, row, stage_rows

__all__ = ["run_adaptation", "run_stream", "run_tracker"]


def run_tracker(args: argparse.Namespace) -> None:
    rows, samples = [], {}
    for n in args.detections:
        video = random_detections(np.random.default_rng(args.seed), n, tuple(args.size), args.frames, args.dim, args.device)
        trackers = {
            name: build_tracker(config(args, *overrides, "TRACKER_HEADS.MAX_PER_FRAME", str(n))) for name, overrides in TRACKERS.items()
        }

        def track(name: str, trackers: Mapping = trackers, video: Sequence[Instances] = video) -> None:
            tracker = trackers[name]
            tracker.reset()
            offline = isinstance(tracker, OfflineTracker)
            for instances in video:
                (tracker.add if offline else tracker.update)(instances)
            if offline:
                tracker.link()

        seconds = alternate({name: lambda name=name, track=track: track(name) for name in trackers}, args.repeats, args.device)
        for name, values in seconds.items():
            samples[f"{name}, {n} detections"] = [value / args.frames for value in values]
            rows.append(row(name, samples[f"{name}, {n} detections"], detections=n))
    report(args, rows, samples, [f"a frame of {args.size[1]}x{args.size[0]} pixels; videos of {args.frames} frames"])


def build_tracker_of_videos(args: argparse.Namespace, *overrides: str) -> VideoTracker:
    """The config's model and tracker, with --weights if given."""
    cfg = config(args, *(["MODEL.WEIGHTS", args.weights] if args.weights else []), *overrides)
    model = build_model(cfg)
    if args.weights:
        AtomicCheckpointer(model).load_for_inference(args.weights)
    return VideoTracker.from_config(cfg, model).eval()


def run_stream(args: argparse.Namespace) -> None:
    video_tracker = build_tracker_of_videos(args)
    model = video_tracker.model
    tracker, workers = video_tracker.tracker, video_tracker.decode_workers
    if isinstance(tracker, OfflineTracker):
        raise ConfigError(f"{type(tracker).__name__} links whole videos, which has no stages; choose an online TRACKER_HEADS.TRACKER_NAME.")
    with tempfile.TemporaryDirectory() as folder:
        if not args.input:
            write_random_frames(np.random.default_rng(args.seed), folder, tuple(args.size), args.frames)
        source = args.input or folder

        def whole() -> tuple[int, int]:
            counts = [len(instances) for _, instances in video_tracker.stream(source, video_tracker.make_recorder())]
            return len(counts), sum(counts)

        frames, detections = whole()
        seconds = alternate({"end to end": whole}, args.repeats, args.device)["end to end"]
        rate = frames / np.median(seconds)
        notes = [
            f"{frames} frames a repeat, {detections / frames:.1f} detections a frame; end to end {rate:.2f} frames/s with {workers} "
            "decoding threads, the stages one after the other with none"
        ]
        if args.device.type == "cuda":
            places = count_syncs(whole)
            notes.append(f"{sum(places.values()) / frames:.1f} host-device syncs a frame: {dict(places.most_common(10))}")
        else:
            notes.append("host-device syncs are counted on a GPU only")
        if not args.weights:
            notes.append("random weights: detections, and what depends on their number, say nothing of a trained model")

        if video_tracker.adaptation is not None:
            notes.append("end to end with adaptation, the stages without")
            video_tracker.adaptation = None
        stages = Stages(args.device)
        stages.wrap(model, "forward", "network")
        if isinstance(model, SOLOTrack):  # the others' post-processing is no part of its own
            stages.wrap(model, "inference", "post-processing")
            stages.wrap(model.head, "mask_features", "network")  # called by the post-processing, but for the levels that need it
        video_tracker.decode_workers = 0

        def staged() -> dict[str, float]:
            recorder = video_tracker.make_recorder()
            video_tracker.start(tracker)
            with closing(video_tracker.detect(source)) as found, stages.stage("decoding and resizing"):
                for frame, instances in found:
                    with stages.stage("association"):
                        instances = tracker.update(instances)
                    with stages.stage("run-length codes"):
                        record(recorder, frame.index, instances)
            return stages.collect()

        samples = [staged() for _ in range(args.repeats + 1)][1:]
    a_frame = [{name: value / frames for name, value in sample.items()} for sample in samples]
    report(
        args,
        [row("end to end, a frame", [s / frames for s in seconds]), *stage_rows(a_frame)],
        {"end to end": seconds, "stages": samples},
        notes,
    )


def run_adaptation(args: argparse.Namespace) -> None:
    video_tracker = build_tracker_of_videos(args, "MODEL.SOLO_TRACK.VIDEO.ENABLED", "True", "TTA.ENABLED", "True")
    adaptation = video_tracker.adaptation
    with tempfile.TemporaryDirectory() as folder:
        if not args.input:
            write_random_frames(np.random.default_rng(args.seed), folder, tuple(args.size), args.frames)
        frames = open_frames(args.input or folder, video_tracker.image_format, max_frames=args.frames)
        adapting, found = [], []

        def track() -> None:
            video_tracker.adaptation = None
            found[:] = [sum(len(instances) for _, instances in video_tracker.stream(frames, video_tracker.make_recorder()))]

        def adapt_and_track() -> None:
            video_tracker.adaptation = adaptation
            for _ in video_tracker.stream(frames, video_tracker.make_recorder()):
                pass
            adapting.append(adaptation.report.seconds)

        seconds = alternate({"tracking": track, "adapting and tracking": adapt_and_track}, args.repeats, args.device)
        count = frames.count()
    seconds["adapting"] = adapting[-args.repeats :]
    rows = [row(name, s, **{"times tracking": ratio(s, seconds["tracking"])}) for name, s in seconds.items()]
    outcome, nodes = adaptation.report, np.mean(adaptation.report.nodes)
    notes = [
        f"{count} frames, {found[0] / count:.1f} detections a frame; TTA.MODE {adaptation.mode}, {len(outcome.losses)} steps, "
        f"{nodes:.1f} nodes a frame, weights changed by {outcome.change:.1e}"
    ]
    report(args, rows, seconds, notes)
