"""train-step and video-step: what training costs, and where the time goes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from solotrack.data.clip_mapper import ClipMapper
from solotrack.data.clip_sets import load_clip_videos
from solotrack.data.loader import SeededDataset, build_train_loader
from solotrack.engine.checkpoint import AtomicCheckpointer
from solotrack.engine.streaming import amp_dtype
from solotrack.engine.trainer import TrainingStep, build_optimizer
from solotrack.modeling.correspondence import video_branch
from solotrack.modeling.meta_arch.solo_track import Features

from .inputs import random_truth
from .measure import Stages, alternate, config, ratio, report, row, stage_rows

__all__ = ["run_train_step", "run_video_step"]


def time_training(stages: Stages, model: nn.Module, trainer: TrainingStep) -> None:
    """Make the model and the trainer report their stages."""
    features, forward = model.features, model.forward

    def timed_features(images: object) -> Features:
        with stages.stage("backbone, forward"):
            maps = features(images)
        waiting = [m for m in maps.levels if m.requires_grad]

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


def trainer(cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[list[dict]]) -> TrainingStep:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    max_norm = clip.CLIP_VALUE if clip.ENABLED and clip.CLIP_TYPE == "full_model" else None
    device = model.device.type
    period = 1 if device == "cpu" else 20  # as in training
    return TrainingStep(model, batches, optimizer, device, amp_dtype(cfg), max_norm, period)


def build(args: argparse.Namespace, cfg: CfgNode) -> nn.Module:
    """The model with its weights, in training."""
    torch.manual_seed(args.seed)
    model = build_model(cfg)
    if args.weights:
        AtomicCheckpointer(model).load(args.weights, checkpointables=[])
    return model.train()


def run_train_step(args: argparse.Namespace) -> None:
    cfg = config(args)
    model = build(args, cfg)
    if args.random:
        rng, size = np.random.default_rng(args.seed), tuple(args.random)

        def picture() -> dict:
            image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
            return {"image": image, "instances": random_truth(rng, args.instances, size, cfg.MODEL.SOLO.NUM_CLASSES), "file_name": "random"}

        batches = repeat([picture() | {"second_view": picture()} for _ in range(cfg.SOLVER.IMS_PER_BATCH)])
    else:
        batches = iter(build_train_loader(cfg))
    stages = Stages(args.device)
    optimizer = build_optimizer(cfg, model)

    def timed_batches() -> Iterator[list[dict]]:
        while True:
            with stages.stage("data"):
                batch = next(batches)
            yield batch

    with EventStorage(cfg.MODEL.SOLO_TRACK.ME.START_ITER):  # every loss term is on
        seconds = alternate({"step": trainer(cfg, model, optimizer, batches).run_step}, args.repeats, args.device)["step"]
        staged = trainer(cfg, model, optimizer, timed_batches())
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


def clips_to_train_on(args: argparse.Namespace, cfg: CfgNode) -> list[dict]:
    """Clips of DATASETS.TRAIN_CLIPS, or of noise."""
    if args.random:
        rng, size = np.random.default_rng(args.seed), (cfg.INPUT.CLIPS.FRAMES, 3, *args.random)
        frames = [torch.from_numpy(rng.integers(0, 256, size, dtype=np.uint8)) for _ in range(args.clips)]
        return [{"frames": list(clip), "file_names": ["random"], "video": str(number)} for number, clip in enumerate(frames)]
    videos = load_clip_videos(cfg)
    dataset = SeededDataset(videos, ClipMapper(cfg), args.seed)
    return [dataset[number % len(videos), number] for number in range(args.clips)]


def run_video_step(args: argparse.Namespace) -> None:
    cfg = config(args, "MODEL.SOLO_TRACK.VIDEO.ENABLED", "True", "SOLVER.BASE_LR", "0.0")  # all repeats find the same nodes
    model = build(args, cfg)
    clips = clips_to_train_on(args, cfg)
    step = trainer(cfg, model, build_optimizer(cfg, model), repeat(clips))
    frames = [{"image": frame} for clip in clips for frame in clip["frames"]]

    def same_images() -> None:
        """Forward and backward of the same images through backbone, FPN and heads."""
        model.zero_grad()
        with torch.autocast(args.device.type, dtype=step.dtype) if step.dtype else contextlib.nullcontext():
            features = model.features(model.preprocess(frames))
            maps = [model.head.category_logits(features.levels), *model.head.mask_features(features.levels)]
            outputs = [*maps, model.embedding_head(features.for_embedding)]
        sum(output.float().mean() for output in outputs).backward()

    calls, cycle_loss = [], video_branch.cycle_loss

    def watched(*inputs: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append((inputs, options))
        return cycle_loss(*inputs, **options)

    def cycle() -> None:
        (nodes, valid), options = calls[0]
        cycle_loss(nodes.detach().requires_grad_(), valid, **options).backward()

    with EventStorage(cfg.MODEL.SOLO_TRACK.VIDEO.WARMUP_ITERS) as storage:
        video_branch.cycle_loss = watched
        step.run_step()
        video_branch.cycle_loss = cycle_loss
        nodes = storage.latest()["video/nodes_per_frame"][0]
        seconds = alternate(
            {"video step": step.run_step, "same images, forward + backward": same_images, "cycle loss, forward + backward": cycle},
            args.repeats,
            args.device,
        )
    whole, plain, _ = seconds.values()
    rows = [row(name, s, **{"times same images": ratio(s, plain), "% of the step": 100 * ratio(s, whole)}) for name, s in seconds.items()]
    height, width = clips[0]["frames"][0].shape[1:]
    notes = [f"{len(clips)} clips of {len(clips[0]['frames'])} frames, the first {width}x{height} pixels; {nodes:.1f} nodes a frame"]
    report(args, rows, seconds, notes)
