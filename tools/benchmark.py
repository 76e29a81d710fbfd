#!/usr/bin/env python3
"""Measure speed: a table with the median and the quartiles over --repeats, and what machine it was.

  tools/benchmark.py mask-rows  --size 800 1344                      mask branch: the rows that are needed against all S^2 maps
  tools/benchmark.py targets    --instances 1 10 50                  assigning ground truths to grid cells
  tools/benchmark.py evaluator  --annotations A.json --predictions R.json     scoring tubes against merely parsing the files
  tools/benchmark.py tracker    --detections 1 10 50                 linking, a frame
  tools/benchmark.py stream     --config-file C.yaml --weights W.pth --input clip.mp4     whole videos, and where the time goes
  tools/benchmark.py train-step --config-file C.yaml --random 800 1344        training, and where the time goes

What is compared runs alternately in one process, so that a busy machine slows both; still, publish only what a quiet machine gave (load).
--json FILE keeps every sample. Words after the options are config overrides: KEY VALUE KEY VALUE ...
"""

from __future__ import annotations

import solotrack  # noqa: F401  (registers models, trackers and data sets; before Detectron2, whose import it quiets)

# isort: split
import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import repeat
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from solotrack.config import ConfigError, check_device, load_config
from solotrack.data.catalog import register_custom
from solotrack.data.loader import build_train_loader
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.cli import run_tool
from solotrack.engine.comparison import TRACKERS
from solotrack.engine.streaming import VideoTracker, amp_dtype, record
from solotrack.engine.trainer import TrainingStep, build_optimizer
from solotrack.evaluation.ytvis import score_tracks
from solotrack.evaluation.ytvis_format import load_json, read_ground_truth, read_predictions
from solotrack.files import atomic_write
from solotrack.modeling.solo import GridTargets, SOLOHead, assign_grid_targets, dice_loss, mask_loss
from solotrack.ops.masks import masks_to_boxes
from solotrack.ops.rle import encode_masks
from solotrack.tracking.base import build_tracker
from solotrack.tracking.offline import OfflineTracker

# ---- measuring and reporting


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(calls: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, ``repeats`` times in turn after two rounds for warming up."""
    seconds = {name: [] for name in calls}
    for turn in range(-2, repeats):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class Stages:
    """Exclusive time of nested stages: an inner one stops the clock of the one around it. On a GPU every change of stage waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0

    def _lap(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._lap()
        self._stack.append(name)
        try:
            yield
        finally:
            self._lap()
            self._stack.pop()

    def switch(self, name: str) -> None:
        """End the innermost stage and begin another in its place."""
        self._lap()
        self._stack[-1] = name

    def wrap(self, owner: object, attribute: str, name: str) -> None:
        """Time every call of ``owner.attribute`` as stage ``name``."""
        function = getattr(owner, attribute)

        def timed(*args: object, **kwargs: object) -> object:
            with self.stage(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)

    def collect(self) -> dict[str, float]:
        """The seconds so far; the clock starts anew."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


def row(name: str, seconds: Sequence[float], **more: object) -> dict[str, object]:
    """A row of the table: median and quartiles in ms."""
    low, median, high = (1000 * np.quantile(seconds, (0.25, 0.5, 0.75))).tolist()
    return {"": name, "median ms": median, "25 %": low, "75 %": high, **more}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the ratios turn by turn."""
    return float(np.median(np.asarray(slow) / np.asarray(fast)))


def stage_rows(samples: Sequence[Mapping[str, float]]) -> list[dict[str, object]]:
    """A row a stage, in order of appearance, with its share of all stages."""
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    whole = sum(np.median([sample.get(name, 0.0) for sample in samples]) for name in names)
    rows = []
    for name in names:
        seconds = [sample.get(name, 0.0) for sample in samples]
        rows.append(row(name, seconds, **{"share %": 100 * float(np.median(seconds)) / whole}))
    return rows


def describe_machine(device: torch.device) -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0] if models else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if device.type == "cuda" else "cpu"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
        "torch": torch.__version__,
        "device": name,
    }


def report(args: argparse.Namespace, rows: list[dict[str, object]], samples: object, notes: Sequence[str] = ()) -> None:
    """Print the table and write the json file."""
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g", missingval=""))
    for note in notes:
        print(note)
    print(f"{args.repeats} repeats; " + ", ".join(f"{key} {value}" for key, value in args.machine.items()))
    if args.json:
        options = {key: value for key, value in vars(args).items() if key not in ("run", "device", "machine", "json")}
        content = {"options": options, "machine": args.machine, "rows": rows, "notes": list(notes), "seconds": samples}
        with atomic_write(args.json) as file:
            json.dump(content, file, indent=1)


# ---- made inputs


def random_masks(rng: np.random.Generator, n: int, size: tuple[int, int], steps: int = 1) -> np.ndarray:
    """(steps, n, H, W) bool: n ellipses that drift; radii from 2 to 25 % of the shorter side."""
    height, width = size
    side = np.array([width, height], dtype=np.float32)
    centers = rng.uniform(0.1, 0.9, (n, 2)) * side + rng.normal(0, 0.01, (n, 2)) * side * np.arange(steps)[:, None, None]  # (steps, n, 2)
    radii = np.exp(rng.uniform(np.log(0.02), np.log(0.25), (n, 2))) * min(size) + 1
    centers = centers.clip(0, side - 1)[..., None]
    x, y = (np.arange(length) for length in (width, height))
    dx = ((x - centers[:, :, 0]) / radii[:, :1]) ** 2  # (steps, n, W)
    dy = ((y - centers[:, :, 1]) / radii[:, 1:]) ** 2
    return dx[:, :, None] + dy[..., None] <= 1


def random_truth(rng: np.random.Generator, n: int, size: tuple[int, int], num_classes: int) -> Instances:
    """n ground truths of an image, as the mapper gives them."""
    masks = torch.from_numpy(random_masks(rng, n, size)[0])
    result = Instances(size)
    result.gt_masks, result.gt_boxes = BitMasks(masks), Boxes(masks_to_boxes(masks))
    result.gt_classes = torch.from_numpy(rng.integers(num_classes, size=n))
    result.gt_ids = torch.arange(n)
    return result


def random_detections(
    rng: np.random.Generator, n: int, size: tuple[int, int], frames: int, dim: int, device: torch.device
) -> list[Instances]:
    """n detections in each frame of a video; an object keeps its class and, but for noise, its embedding."""
    classes, own = torch.from_numpy(rng.integers(20, size=n)), rng.normal(size=(n, dim))
    video = []
    for masks in random_masks(rng, n, size, frames):
        instances = Instances(size)
        instances.pred_masks = torch.from_numpy(masks)
        instances.pred_boxes = Boxes(masks_to_boxes(instances.pred_masks))
        instances.scores = torch.from_numpy(np.sort(rng.uniform(0.3, 1, n))[::-1].astype(np.float32))
        instances.pred_classes = classes
        instances.embeddings = torch.from_numpy((own + rng.normal(0, 0.3, (n, dim))).astype(np.float32))
        video.append(instances.to(device))
    return video


def random_tubes(rng: np.random.Generator, args: argparse.Namespace) -> tuple[dict, list[dict]]:
    """Annotations and predictions in YouTube-VIS' format: every other prediction follows a true object, the others are anywhere."""
    size = tuple(args.size)
    pool = [encode_masks(tube) for tube in random_masks(rng, 40, size, args.frames).swapaxes(0, 1)]
    video_ids = range(1, args.videos + 1)
    truth = {
        "videos": [
            {"id": i, "height": size[0], "width": size[1], "file_names": [f"{t}.jpg" for t in range(args.frames)]} for i in video_ids
        ],
        "categories": [{"id": i, "name": f"category {i}"} for i in range(1, 21)],
        "annotations": [],
    }
    predictions = []
    for video in video_ids:
        tubes, labels = rng.integers(len(pool), size=args.objects), rng.integers(1, 21, size=args.objects)
        for tube, label in zip(tubes.tolist(), labels.tolist(), strict=True):
            number = len(truth["annotations"]) + 1
            areas = [1000] * args.frames
            truth["annotations"].append(
                {"id": number, "video_id": video, "category_id": label, "iscrowd": 0, "segmentations": pool[tube], "areas": areas}
            )
        for number in range(args.tracks):
            like = number // 2 % max(args.objects, 1)
            tube = int(tubes[like]) if number % 2 == 0 and args.objects else int(rng.integers(len(pool)))
            label = int(labels[like]) if number % 2 == 0 and args.objects else int(rng.integers(1, 21))
            predictions.append({"video_id": video, "category_id": label, "score": float(rng.random()), "segmentations": pool[tube]})
    return truth, predictions


def write_random_frames(rng: np.random.Generator, folder: str, size: tuple[int, int], count: int) -> None:
    """JPEG files of smooth noise."""
    for index in range(count):
        small = rng.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
        cv2.imwrite(f"{folder}/{index:05d}.jpg", cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))


def config(args: argparse.Namespace, *overrides: str) -> CfgNode:
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", str(args.device), *overrides])
    register_custom(cfg)
    return cfg


def head_and_targets(args: argparse.Namespace, cfg: CfgNode, instances: int) -> tuple[SOLOHead, list[Instances], Callable[[], GridTargets]]:
    """SOLO's head, ground truths of a batch, and the call that assigns them."""
    head = SOLOHead(cfg, {name: ShapeSpec(channels=cfg.MODEL.FPN.OUT_CHANNELS) for name in cfg.MODEL.SOLO.IN_FEATURES}).to(args.device)
    rng = np.random.default_rng(args.seed)
    size = tuple(args.size)
    truth = [random_truth(rng, instances, size, head.num_classes).to(args.device) for _ in range(args.batch)]
    solo = cfg.MODEL.SOLO
    return (
        head,
        truth,
        lambda: assign_grid_targets(truth, size, head.num_grids, head.strides, solo.SCALE_RANGES, solo.SIGMA, head.num_classes),
    )


# ---- the benchmarks


def all_maps_loss(head: SOLOHead, features: Sequence[torch.Tensor], targets: GridTargets) -> torch.Tensor:
    """``mask_loss`` as published: the S^2 maps of every level and image, of which the positive cells' are taken (METHOD 1.2, 1.4)."""
    maps = [
        conv(F.interpolate(head.mask_tower(feature), scale_factor=2, mode="bilinear", align_corners=False))  # (N, S^2, 2h, 2w)
        for conv, feature in zip(head.mask_out, features, strict=True)
    ]
    losses = [dice_loss(maps[p.level][p.image][p.cells], targets.mask_targets(p)) for p in targets.positives()]
    return torch.cat(losses).mean()


def run_mask_rows(args: argparse.Namespace) -> None:
    cfg = config(args)
    head, _, assign = head_and_targets(args, cfg, args.instances)
    targets = assign()
    positives = sum(len(p.cells) for p in targets.positives())
    if not positives:
        raise ConfigError("No instance is in the scale range of a level; give more --instances or another --size.")
    generator = torch.Generator().manual_seed(args.seed)
    shapes = [(args.batch, cfg.MODEL.FPN.OUT_CHANNELS, args.size[0] // s, args.size[1] // s) for s in head.strides]
    features = [torch.randn(shape, generator=generator).to(args.device).requires_grad_() for shape in shapes]
    losses = {"needed rows": mask_loss, "all maps": all_maps_loss}

    def forward(loss: Callable) -> torch.Tensor:
        with torch.no_grad():
            return loss(head, features, targets)

    def backward(loss: Callable) -> None:
        for tensor in (*features, *head.parameters()):
            tensor.grad = None
        loss(head, features, targets).backward()

    values = [forward(loss).item() for loss in losses.values()]
    if abs(values[0] - values[1]) > 1e-3 * abs(values[1]):
        raise ArithmeticError(f"The two ways to compute the mask loss disagree, {values[0]} and {values[1]}; their times mean nothing.")
    rows, samples = [], {}
    for title, run in (("forward", forward), ("forward + backward", backward)):
        seconds = alternate({name: lambda loss=loss, run=run: run(loss) for name, loss in losses.items()}, args.repeats, args.device)
        for name in losses:
            rows.append(row(f"{name}, {title}", seconds[name], **{"times needed rows": ratio(seconds[name], seconds["needed rows"])}))
            samples[f"{name}, {title}"] = seconds[name]
    report(args, rows, samples, [f"{positives} positive cells of {args.batch * head.num_cells}; both ways give the same loss"])


def run_targets(args: argparse.Namespace) -> None:
    cfg = config(args)
    calls = {f"{n} instances an image": head_and_targets(args, cfg, n)[2] for n in args.instances}
    seconds = alternate(calls, args.repeats, args.device)
    report(args, [row(name, s, **{"ms an image": 1000 * float(np.median(s)) / args.batch}) for name, s in seconds.items()], seconds)


def run_evaluator(args: argparse.Namespace) -> None:
    if bool(args.annotations) != bool(args.predictions):
        raise ConfigError("Give both --annotations and --predictions, or neither for random tubes.")
    if args.predictions and args.predictions.endswith(".zip"):
        raise ConfigError(f"{args.predictions}: give the results.json in it; the comparison is with parsing that.")
    with tempfile.TemporaryDirectory() as folder:
        files = args.annotations, args.predictions
        if not args.annotations:
            files = f"{folder}/truth.json", f"{folder}/results.json"
            for path, content in zip(files, random_tubes(np.random.default_rng(args.seed), args), strict=True):
                Path(path).write_text(json.dumps(content), encoding="utf-8")
        results = []

        def parse() -> None:
            for path in files:
                json.loads(Path(path).read_bytes())

        def evaluate() -> None:
            truth = read_ground_truth(load_json(files[0]), files[0])
            tracks, _ = read_predictions(load_json(files[1]), truth, files[1])
            results.append((score_tracks(truth, tracks).stats["AP"], len(truth.tracks), len(tracks)))

        seconds = alternate({"json.loads of both files": parse, "read, check and score them": evaluate}, args.repeats, args.device)
        size = sum(os.path.getsize(path) for path in files) / 1e6
    parsing, scoring = seconds.values()
    rows = [row(name, s, **{"times json.loads": ratio(s, parsing)}) for name, s in zip(seconds, (parsing, scoring), strict=True)]
    report(args, rows, seconds, ["{1} true and {2} predicted tracks, AP {0:.4f}; ".format(*results[-1]) + f"{size:.1f} MB"])


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


def count_syncs(call: Callable[[], object]) -> Counter[str]:
    """Place in the source -> how often the host waited there for the GPU, as PyTorch notices it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))


def run_stream(args: argparse.Namespace) -> None:
    cfg = config(args, *(["MODEL.WEIGHTS", args.weights] if args.weights else []))
    model = build_model(cfg).eval()
    if args.weights:
        AtomicCheckpointer(model).load_for_inference(args.weights)
    video_tracker = VideoTracker.from_config(cfg, model).eval()
    tracker, workers = video_tracker.tracker, video_tracker.decode_workers
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

        stages = Stages(args.device)
        stages.wrap(model, "forward", "network")
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


def time_training(stages: Stages, model: nn.Module, trainer: TrainingStep) -> None:
    """Make the model and the trainer report their stages."""
    features, forward = model.features, model.forward

    def timed_features(images: object) -> list[torch.Tensor]:
        with stages.stage("backbone, forward"):
            maps = features(images)
        waiting = [m for m in maps if m.requires_grad]

        def arrived(gradient: torch.Tensor) -> None:
            del gradient
            waiting.pop()
            if not waiting:  # the heads are through with the backward pass
                stages.switch("backbone, backward")

        for feature in tuple(waiting):
            feature.register_hook(arrived)
        return maps

    def timed_forward(batch: list[dict]) -> dict[str, torch.Tensor]:
        with stages.stage("input to the device"):
            losses = forward(batch)
        stages.switch("heads and losses, backward")
        return losses

    model.features, model.forward = timed_features, timed_forward
    for owner, attribute, name in (
        (model, "losses", "losses, forward"),
        (model, "assign", "targets"),
        (model.head, "category_logits", "heads, forward"),
        (model.head, "mask_features", "heads, forward"),
        (model.head, "mask_logits", "heads, forward"),
        (model.embedding_head, "forward", "heads, forward"),
    ):
        if owner is not None:
            stages.wrap(owner, attribute, name)
    trainer.after_backward = lambda: stages.switch("optimizer and metrics")


def run_train_step(args: argparse.Namespace) -> None:
    cfg = config(args)
    torch.manual_seed(args.seed)
    model = build_model(cfg)
    if args.weights:
        AtomicCheckpointer(model).load(args.weights, checkpointables=[])
    if args.random:
        rng, size = np.random.default_rng(args.seed), tuple(args.random)

        def picture() -> dict:
            image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
            return {"image": image, "instances": random_truth(rng, args.instances, size, cfg.MODEL.SOLO.NUM_CLASSES), "file_name": "random"}

        batches = repeat([picture() | {"second_view": picture()} for _ in range(cfg.SOLVER.IMS_PER_BATCH)])
    else:
        batches = iter(build_train_loader(cfg))
    clip = cfg.SOLVER.CLIP_GRADIENTS
    max_norm = clip.CLIP_VALUE if clip.ENABLED and clip.CLIP_TYPE == "full_model" else None
    optimizer = build_optimizer(cfg, model)
    stages = Stages(args.device)

    def timed_batches() -> Iterator[list[dict]]:
        while True:
            with stages.stage("data"):
                batch = next(batches)
            yield batch

    def trainer(source: Iterator[list[dict]]) -> TrainingStep:
        period = 1 if args.device.type == "cpu" else 20  # as in training
        return TrainingStep(model, source, optimizer, args.device.type, amp_dtype(cfg), max_norm, period)

    with EventStorage(cfg.MODEL.SOLO_TRACK.ME.START_ITER):  # every loss term is on
        seconds = alternate({"step": trainer(batches).run_step}, args.repeats, args.device)["step"]
        staged = trainer(timed_batches())
        time_training(stages, model, staged)
        samples = []
        for _ in range(args.repeats + 1):
            with stages.stage("clearing gradients"):
                staged.run_step()
            samples.append(stages.collect())
    images = cfg.SOLVER.IMS_PER_BATCH
    notes = [
        f"{images / np.median(seconds):.2f} images/s, {images} images a step"
        + (
            f", random {args.random[1]}x{args.random[0]} pixels, {args.instances} instances each: no data to wait for"
            if args.random
            else ""
        )
    ]
    report(args, [row("whole step", seconds), *stage_rows(samples[1:])], {"step": seconds, "stages": samples[1:]}, notes)


# ---- command line


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
    command = add("train-step", run_train_step, "images/s of training and the time of each stage", config_required=True)
    command.add_argument("--weights", metavar="FILE", help="checkpoint or backbone to start from (default: random weights)")
    text = "made images of this size in place of DATASETS.TRAIN"
    command.add_argument("--random", type=int, nargs=2, metavar=("H", "W"), help=text)
    command.add_argument("--instances", type=int, default=7, metavar="M", help="--random: ground truths an image (default: 7)")
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
