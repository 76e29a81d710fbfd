"""mask-rows and targets: what SOLO's training does beside its convolutions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch.nn import functional as F

from solotrack.config import ConfigError
from solotrack.modeling.solo import GridTargets, SOLOHead, assign_grid_targets, dice_loss, mask_loss

from .inputs import random_truth
from .measure import alternate, config, ratio, report, row

__all__ = ["run_mask_rows", "run_targets"]


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
