"""Faults of a config, found before any work starts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from detectron2.config import CfgNode

from solotrack.errors import SoloTrackError

from .baselines import baseline_faults
from .models import ARCHITECTURES, classes_key, num_classes, trains_on_videos

__all__ = ["ConfigError", "check_config", "check_device", "flatten"]


class ConfigError(SoloTrackError, ValueError):
    """A config key that does not exist or holds a value that cannot work; the message says what is allowed."""


_UNMATCHED = ("none", "start_small", "null", "mutual")

# Key -> values it may take.
_CHOICES = {
    "MODEL.META_ARCHITECTURE": ARCHITECTURES,
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.SOLO.TYPE": ("solo", "decoupled"),
    "MODEL.SOLO.NORM": ("GN", ""),
    "MODEL.SOLO.NMS_KERNEL": ("gaussian", "linear"),
    "MODEL.SOLO_TRACK.EMB.OUT_NORM": ("none", "l2", "layernorm"),
    "MODEL.SOLO_TRACK.EMB.POOL_LEVELS": ("all", "per_level"),
    "MODEL.SOLO_TRACK.EMB.LOSS": ("center_contra", "infonce"),
    "MODEL.SOLO_TRACK.EMB.CENTER_REDUCTION": ("mean", "sum"),
    "MODEL.SOLO_TRACK.EMB.CENTER_TYPE": ("l1", "smooth_l1"),
    "MODEL.SOLO_TRACK.EMB.SIM": ("dot", "cosine"),
    "MODEL.SOLO_TRACK.EMB.SCOPE": ("image", "batch", "gather"),
    "MODEL.SOLO_TRACK.EMB.VIEWS": (1, 2),
    "MODEL.SOLO_TRACK.ME.MODE": ("none", "paper", "offdiag", "minimize"),
    "INPUT.COPY_PASTE.SOURCE": ("other", "same"),
    "TRACKER_HEADS.CALIBRATION.SOURCE": ("images", "clips"),
    "MODEL.SOLO_TRACK.VIDEO.NODES": ("mask_nms", "point_nms"),
    "MODEL.SOLO_TRACK.VIDEO.SIM": ("cosine", "dot"),
    "MODEL.SOLO_TRACK.VIDEO.UNMATCHED": _UNMATCHED,
    "MODEL.SOLO_TRACK.VIDEO.PALINDROME": ("full", "all"),
    "INPUT.CLIPS.FRAMES": (2, 3, 4),
    "TTA.MODE": ("video", "online", "continual"),
    "TTA.UNMATCHED": ("", *_UNMATCHED),
    "MODEL.SOLO_TRACK.EMB_READ": ("cell", "center_region", "cluster"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MASK_FORMAT": ("bitmask",),
    "DATASETS.VIDEO_CATEGORIES": ("all", "name20", "sem19"),
    "DATASETS.VIDEO_SUBSET": ("any", "all"),
    "SOLVER.OPTIMIZER": ("SGD", "ADAMW"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("full_model", "norm", "value"),
    "SOLVER.AMP.DTYPE": ("auto", "float16", "bfloat16"),
    "TRACKER_HEADS.TRACKER_NAME": ("EmbeddingTracker", "DistanceTracker", "IoUTracker", "IoUTrackerPlus", "SeqTracker"),
    "TRACKER_HEADS.SIM": ("softmax_null", "softmax", "bisoftmax", "masa"),
    "TRACKER_HEADS.METRIC": ("auto", "dot", "cosine"),
    "TRACKER_HEADS.ASSIGN": ("greedy", "hungarian"),
    "TRACKER_HEADS.LOSER": ("drop", "new"),
    "TRACKER_HEADS.PROTO_UPDATE": ("last", "ema", "mean"),
    "TRACKER_HEADS.MEMORY_READ": ("max", "mean"),
    "TRACKER_HEADS.CUES.IOU_TYPE": ("box", "mask"),
    "TRACKER_HEADS.IOU.TYPE": ("mask", "box"),
    "TRACKER_HEADS.TRACK_SCORE": ("mean", "max", "mean_topk"),
    "TRACKER_HEADS.TRACK_CATEGORY": ("majority", "score_weighted"),
}

# Key -> (smallest, largest) value it may take, ends included.
_INF = math.inf
_EPS = 1e-12  # "greater than zero"
_RANGES = {
    "MODEL.SOLO.NUM_CLASSES": (1, _INF),
    "MODEL.SOLO.SIGMA": (_EPS, 1),
    "MODEL.SOLO.NUM_CONVS": (1, _INF),
    "MODEL.SOLO.CHANNELS": (1, _INF),
    "MODEL.SOLO.NUM_GROUPS": (1, _INF),
    "MODEL.SOLO.PRIOR_PROB": (_EPS, 1 - _EPS),
    "MODEL.SOLO.FOCAL_ALPHA": (0, 1),
    "MODEL.SOLO.FOCAL_GAMMA": (0, _INF),
    "MODEL.SOLO.CATE_LOSS_WEIGHT": (0, _INF),
    "MODEL.SOLO.MASK_LOSS_WEIGHT": (0, _INF),
    "MODEL.SOLO.SCORE_THRESH": (0, 1),
    "MODEL.SOLO.MASK_THRESH": (0, 1),
    "MODEL.SOLO.UPDATE_THRESH": (0, 1),
    "MODEL.SOLO.NMS_PRE": (1, _INF),
    "MODEL.SOLO.NMS_SIGMA": (_EPS, _INF),
    "MODEL.SOLO.MAX_PER_IMAGE": (1, _INF),
    "MODEL.SOLO.MIN_PART": (0, 1),
    "MODEL.SOLO_TRACK.EMB.DIM": (1, _INF),
    "MODEL.SOLO_TRACK.EMB.NUM_CONVS": (1, _INF),
    "MODEL.SOLO_TRACK.EMB.CHANNELS": (1, _INF),
    "MODEL.SOLO_TRACK.EMB.KERNEL_SIZE": (1, _INF),
    "MODEL.SOLO_TRACK.EMB.LOSS_WEIGHT": (0, _INF),
    "MODEL.SOLO_TRACK.EMB.CENTER_WEIGHT": (0, _INF),
    "MODEL.SOLO_TRACK.EMB.LAMBDA": (0, _INF),
    "MODEL.SOLO_TRACK.EMB.SCALE": (_EPS, _INF),
    "MODEL.SOLO_TRACK.EMB.TEMPERATURE": (_EPS, _INF),
    "MODEL.SOLO_TRACK.EMB.LOO_NULL": (0, _INF),
    "MODEL.SOLO_TRACK.EMB.QUEUE": (0, _INF),
    "MODEL.SOLO_TRACK.ME.WEIGHT": (0, _INF),
    "MODEL.SOLO_TRACK.ME.START_ITER": (0, _INF),
    "MODEL.SOLO_TRACK.VIDEO.LOSS_WEIGHT": (0, _INF),
    "MODEL.SOLO_TRACK.VIDEO.WARMUP_ITERS": (0, _INF),
    "MODEL.SOLO_TRACK.VIDEO.NODE_SCORE": (0, 1),
    "MODEL.SOLO_TRACK.VIDEO.NODE_NMS": (0, 1),
    "MODEL.SOLO_TRACK.VIDEO.MAX_NODES": (1, _INF),
    "MODEL.SOLO_TRACK.VIDEO.TEMPERATURE": (_EPS, _INF),
    "MODEL.SOLO_TRACK.VIDEO.EDGE_DROPOUT": (0, 1),
    "MODEL.SOLO_TRACK.VIDEO.PSEUDO_WEIGHT": (0, _INF),
    "MODEL.SOLO_TRACK.VIDEO.PSEUDO_THRESH": (0, 1),
    "MODEL.TRACK_HEAD.POOLER_RESOLUTION": (1, _INF),
    "MODEL.TRACK_HEAD.POOLER_SAMPLING_RATIO": (0, _INF),
    "MODEL.TRACK_HEAD.NUM_FC": (1, _INF),
    "MODEL.TRACK_HEAD.FC_DIM": (1, _INF),
    "MODEL.TRACK_HEAD.LOSS_WEIGHT": (0, _INF),
    "MODEL.SIPMASK.NUM_CLASSES": (1, _INF),
    "MODEL.SIPMASK.NUM_CONVS": (1, _INF),
    "MODEL.SIPMASK.CHANNELS": (1, _INF),
    "MODEL.SIPMASK.NUM_GROUPS": (1, _INF),
    "MODEL.SIPMASK.PRIOR_PROB": (_EPS, 1 - _EPS),
    "MODEL.SIPMASK.NUM_BASES": (1, _INF),
    "MODEL.SIPMASK.MASK_RESOLUTION": (2, _INF),
    "MODEL.SIPMASK.MASK_LOSS_WEIGHT": (0, _INF),
    "MODEL.SIPMASK.TRACK_CONVS": (1, _INF),
    "MODEL.SIPMASK.TRACK_DIM": (1, _INF),
    "MODEL.SIPMASK.TRACK_JITTER": (0, 1),
    "MODEL.SIPMASK.TRACK_LOSS_WEIGHT": (0, _INF),
    "MODEL.SIPMASK.SCORE_THRESH": (0, 1),
    "MODEL.SIPMASK.NMS_PRE": (1, _INF),
    "MODEL.SIPMASK.NMS_THRESH": (0, 1),
    "MODEL.ROI_HEADS.NUM_CLASSES": (1, _INF),
    "INPUT.CLIPS.MAX_GAP": (1, _INF),
    "INPUT.CLIPS.MAX_SIZE_TRAIN": (1, _INF),
    "INPUT.CLIPS.COLOR": (0, 1),
    "SOLVER.CLIPS_PER_BATCH": (0, _INF),
    "INPUT.MIN_SIZE_TEST": (0, _INF),
    "INPUT.STRETCH.LOW": (0, 100),
    "INPUT.STRETCH.HIGH": (0, 100),
    "INPUT.STRETCH.GAMMA": (_EPS, _INF),
    "INPUT.AUG.COLOR": (0, 1),
    "INPUT.VIEWS.SHIFT": (0, 1),
    "INPUT.VIEWS.ROTATION": (0, 180),
    "INPUT.VIEWS.FLIP": (0, 1),
    "INPUT.VIEWS.COLOR": (0, 1),
    "INPUT.VIEWS.SCATTER": (0, 1),
    "INPUT.VIEWS.MIN_VISIBLE": (0, 1),
    "INPUT.COPY_PASTE.PROB": (0, 1),
    "INPUT.COPY_PASTE.MAX_INSTANCES": (1, _INF),
    "INPUT.COPY_PASTE.MIN_VISIBLE": (0, 1),
    "SOLVER.IMS_PER_BATCH": (1, _INF),
    "SOLVER.BASE_LR": (0, _INF),
    "SOLVER.BACKBONE_LR_FACTOR": (0, _INF),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (_EPS, _INF),
    "SOLVER.MAX_ITER": (1, _INF),
    "SOLVER.WARMUP_FACTOR": (0, 1),
    "SOLVER.WARMUP_ITERS": (0, _INF),
    "SOLVER.CHECKPOINT_PERIOD": (1, _INF),
    "DATALOADER.NUM_WORKERS": (0, _INF),
    "TEST.EVAL_PERIOD": (0, _INF),
    "TRACKER_HEADS.SCORE_THRESH": (0, 1),
    "TRACKER_HEADS.MAX_PER_FRAME": (1, _INF),
    "TRACKER_HEADS.PRE_NMS_THRESH": (0, 1),
    "TRACKER_HEADS.SCALE": (0, _INF),
    "TRACKER_HEADS.NEW_THRESH": (0, 1),
    "TRACKER_HEADS.COS_MIN": (-1, 1),
    "TRACKER_HEADS.PROTO_MOMENTUM": (0, 1),
    "TRACKER_HEADS.MEMORY": (0, _INF),
    "TRACKER_HEADS.RETAIN": (0, _INF),
    "TRACKER_HEADS.INIT_SCORE": (0, 1),
    "TRACKER_HEADS.DISTANCE.MAX": (0, _INF),
    "TRACKER_HEADS.DISTANCE.RETAIN": (0, _INF),
    "TRACKER_HEADS.IOU.MIN": (0, 1),
    "TRACKER_HEADS.IOU.RETAIN": (0, _INF),
    "TRACKER_HEADS.SEQ.MIN_IOU": (0, 1),
    "TRACKER_HEADS.SEQ.NMS": (0, 1),
    "TRACKER_HEADS.SEQ.MAX_TRACKS": (0, _INF),
    "TRACKER_HEADS.TRACK_SCORE_TOPK": (1, _INF),
    "TRACKER_HEADS.CALIBRATION.IMAGES": (1, _INF),
    "TRACKER_HEADS.CALIBRATION.DROP": (0.01, 0.99),
    "TRACKER_HEADS.CALIBRATION.DISTRACTORS": (0, _INF),
    "TRACKER_HEADS.CALIBRATION.NEW_SHARE": (0, 0.99),
    "TTA.ITERS": (0, _INF),
    "TTA.LR": (0, _INF),
    "TTA.PSEUDO_WEIGHT": (0, _INF),
    "TTA.CLIPS_PER_STEP": (1, _INF),
    "TTA.MAX_GAP": (1, _INF),
    "TTA.SEED": (0, _INF),
    "TEST.FRAMES_PER_BATCH": (1, _INF),
    "TEST.DECODE_WORKERS": (0, _INF),
}


# Key of own data sets -> the texts that each of its entries consists of.
_ENTRIES = {
    "DATASETS.CUSTOM.IMAGES": ("name", "json file", "folder"),
    "DATASETS.CUSTOM.VIDEOS": ("name", "json file", "folder"),
    "DATASETS.CUSTOM.CLIPS": ("name", "video file or folder or pattern"),
}


def flatten(node: CfgNode, prefix: str = "") -> dict[str, object]:
    """``{"MODEL.SOLO.SIGMA": 0.2, ...}`` of a config's leaves."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _is_interval(value: object) -> bool:
    """Whether it is [smallest, largest]."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(x, (int, float)) for x in value)
    return pair and value[0] <= value[1]


def check_config(cfg: CfgNode) -> None:
    """Check every value that can be checked before any work starts.

    Raises:
        ConfigError: with one sentence a fault, all faults at once.
    """
    faults = [*_value_faults(flatten(cfg)), *_model_faults(cfg), *_clip_faults(cfg), *_solver_faults(cfg)]
    if faults:
        raise ConfigError("\n".join(faults))


def _value_faults(flat: dict[str, object]) -> Iterator[str]:
    """Values that are wrong whatever the others are."""
    for key, allowed in _CHOICES.items():
        if flat[key] not in allowed:
            yield f"{key} is {flat[key]!r}; allowed: {', '.join(repr(a) for a in allowed)}."
    for key, (low, high) in _RANGES.items():
        value = flat[key]
        if not isinstance(value, (int, float)) or not low <= value <= high:
            bound = "greater than 0" if low == _EPS else f"at least {low}"
            yield f"{key} is {value!r}; it must be a number {bound}{'' if high == _INF else f' and at most {high:g}'}."
    for key in ("MODEL.SOLO_TRACK.EMB.NULL_LOGIT", "MODEL.SOLO_TRACK.VIDEO.NULL_SIM", "TRACKER_HEADS.NULL_LOGIT"):
        if flat[key] is not None and not isinstance(flat[key], (int, float)):
            yield f"{key} is {flat[key]!r}; it must be a number or None."
    for key in ("INPUT.AUG.SCALE_RANGE", "INPUT.VIEWS.SCALE_RANGE", "INPUT.COPY_PASTE.SCALE_RANGE"):
        if not _is_interval(flat[key]) or not flat[key][0] > 0:
            yield f"{key} is {flat[key]!r}; it must be two factors, 0 < smallest <= largest."
    if not flat["INPUT.STRETCH.LOW"] < flat["INPUT.STRETCH.HIGH"]:
        yield "INPUT.STRETCH.LOW must be below INPUT.STRETCH.HIGH."
    for key, words in _ENTRIES.items():
        if not all(isinstance(entry, (list, tuple)) and [type(x) for x in entry] == [str] * len(words) for entry in flat[key]):
            yield f"{key} is {flat[key]!r}; each entry must be [{', '.join(words)}]."
    sizes = flat["INPUT.CLIPS.MIN_SIZE_TRAIN"]
    if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
        yield f"INPUT.CLIPS.MIN_SIZE_TRAIN is {sizes!r}; give short sides in pixels, whole numbers of at least 1."
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        if len(flat[key]) != 3 or not all(isinstance(x, (int, float)) for x in flat[key]):
            yield f"{key} is {flat[key]!r}; it must be three numbers, one a channel."
    if not all(flat["MODEL.PIXEL_STD"]):
        yield "MODEL.PIXEL_STD has a 0; channels are divided by it."


def _model_faults(cfg: CfgNode) -> Iterator[str]:
    """Values of the model that do not go together."""
    solo, emb = cfg.MODEL.SOLO, cfg.MODEL.SOLO_TRACK.EMB
    levels = len(solo.IN_FEATURES)
    for key in ("STRIDES", "NUM_GRIDS", "SCALE_RANGES"):
        if len(solo[key]) != levels:
            yield f"MODEL.SOLO.{key} has {len(solo[key])} entries but MODEL.SOLO.IN_FEATURES names {levels} levels; give one for each."
    if not all(map(_is_interval, solo.SCALE_RANGES)):
        yield f"MODEL.SOLO.SCALE_RANGES is {solo.SCALE_RANGES}; each entry must be [smallest, largest] in pixels."
    if not all(isinstance(size, int) and size >= 1 for size in solo.NUM_GRIDS):
        yield f"MODEL.SOLO.NUM_GRIDS is {solo.NUM_GRIDS}; each entry must be a whole number, at least 1."
    if not all(isinstance(stride, int) and stride >= 2 and stride % 2 == 0 for stride in solo.STRIDES):
        yield f"MODEL.SOLO.STRIDES is {solo.STRIDES}; each entry must be an even number of pixels, for masks come at half of it."
    for node, name in ((solo, "MODEL.SOLO"), (emb, "MODEL.SOLO_TRACK.EMB")):
        if solo.NORM == "GN" and solo.NUM_GROUPS > 0 and node.CHANNELS % solo.NUM_GROUPS:
            yield f"{name}.CHANNELS ({node.CHANNELS}) must be a multiple of MODEL.SOLO.NUM_GROUPS ({solo.NUM_GROUPS})."
    if emb.KERNEL_SIZE % 2 == 0:
        yield f"MODEL.SOLO_TRACK.EMB.KERNEL_SIZE is {emb.KERNEL_SIZE}; it must be odd, so that a cell is in the middle of what it sees."
    if emb.QUEUE > 0 and emb.LOSS == "infonce":
        yield "MODEL.SOLO_TRACK.EMB.QUEUE holds centers, but EMB.LOSS infonce compares cells; set QUEUE to 0."
    names = cfg.DATASETS.CLASS_NAMES
    if names and cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES and len(names) != num_classes(cfg):
        yield f"DATASETS.CLASS_NAMES has {len(names)} names; give {classes_key(cfg)} ({num_classes(cfg)}), or none."
    for key in ("CHANNELS", "BLOCKS"):
        numbers = cfg.MODEL.SMALL_RESNET[key]
        if len(numbers) != 4 or not all(isinstance(number, int) and number >= 1 for number in numbers):
            yield f"MODEL.SMALL_RESNET.{key} is {numbers}; give four numbers of at least 1 each, for res2 to res5."
    channels = cfg.MODEL.SMALL_RESNET.CHANNELS
    if any(a == b for a, b in pairwise(channels)):
        yield f"MODEL.SMALL_RESNET.CHANNELS is {channels}; neighbours must differ, for a block gets its shortcut from that."
    if cfg.MODEL.SOLO_TRACK.VIDEO.ENABLED and not emb.ENABLED:
        yield "MODEL.SOLO_TRACK.VIDEO.ENABLED needs MODEL.SOLO_TRACK.EMB.ENABLED: the video branch improves what the embedding head reads."
    if cfg.MODEL.SOLO_TRACK.VIDEO.ENABLED and solo.FREEZE:
        yield "MODEL.SOLO_TRACK.VIDEO.ENABLED and MODEL.SOLO.FREEZE exclude each other: the video branch acts on the features."
    if cfg.TTA.ENABLED and not cfg.MODEL.SOLO_TRACK.VIDEO.ENABLED:
        yield "TTA.ENABLED needs MODEL.SOLO_TRACK.VIDEO.ENABLED: the video branch's loss is what adapts the model."
    if cfg.TTA.ENABLED and emb.STAGE and set(cfg.TTA.PARTS) == {"fpn"}:
        yield "TTA.PARTS is fpn alone, but with MODEL.SOLO_TRACK.EMB.STAGE the embedding does not read FPN: there is nothing to adapt."
    unknown = set(cfg.TTA.PARTS) - {"backbone", "fpn", "video_head"}
    if unknown or not cfg.TTA.PARTS:
        yield f"TTA.PARTS is {cfg.TTA.PARTS}; it must name one or more of backbone, fpn and video_head."
    if solo.FREEZE and not emb.ENABLED:
        yield "MODEL.SOLO.FREEZE needs MODEL.SOLO_TRACK.EMB.ENABLED: with both heads out there is nothing to train."
    if trains_on_videos(cfg):
        yield from baseline_faults(cfg)
    elif cfg.TRACKER_HEADS.TRACKER_NAME == "EmbeddingTracker" and not emb.ENABLED:
        yield (
            "TRACKER_HEADS.TRACKER_NAME EmbeddingTracker needs MODEL.SOLO_TRACK.EMB.ENABLED; "
            "use DistanceTracker or IoUTracker with plain SOLO."
        )


def _clip_faults(cfg: CfgNode) -> Iterator[str]:
    """Sets of clips that do not fit their use."""
    data = cfg.DATASETS
    if cfg.SOLVER.CLIPS_PER_BATCH > 0 and not data.TRAIN_CLIPS:
        yield "SOLVER.CLIPS_PER_BATCH needs DATASETS.TRAIN_CLIPS; name a set of videos there."
    if cfg.TRACKER_HEADS.CALIBRATION.SOURCE == "clips" and not data.TRAIN_CLIPS:
        yield "TRACKER_HEADS.CALIBRATION.SOURCE clips needs DATASETS.TRAIN_CLIPS; name a set of videos there."
    if cfg.TRACKER_HEADS.CALIBRATION.SOURCE == "clips" and cfg.TRACKER_HEADS.CALIBRATION.DISTRACTORS > 0:
        yield "TRACKER_HEADS.CALIBRATION.DISTRACTORS are objects of other images; with CALIBRATION.SOURCE clips leave it at 0."
    if cfg.SOLVER.CLIPS_PER_BATCH > 0 and not cfg.MODEL.SOLO_TRACK.VIDEO.ENABLED:
        yield "SOLVER.CLIPS_PER_BATCH needs MODEL.SOLO_TRACK.VIDEO.ENABLED: the video branch is what learns from clips."
    names = [entry[0] for entry in data.CUSTOM.CLIPS if isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str)]
    if len(set(names)) < len(names):
        yield f"DATASETS.CUSTOM.CLIPS has a name more than once ({', '.join(names)}); give each set its own."
    for key in ("TRAIN", "TEST"):
        for name in set(names).intersection(data[key]):
            yield f"DATASETS.{key} has {name!r} of DATASETS.CUSTOM.CLIPS, which has no json; only DATASETS.TRAIN_CLIPS takes it."


def _solver_faults(cfg: CfgNode) -> Iterator[str]:
    """A schedule that does not fit together."""
    steps = cfg.SOLVER.STEPS
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupCosineLR" and list(steps) != sorted(set(steps)):
        yield f"SOLVER.STEPS is {steps}; iterations must ascend."


def check_device(cfg: CfgNode, num_gpus: int = 1) -> None:
    """Check that MODEL.DEVICE is there, and as many of it as processes on this machine will want.

    Raises:
        ConfigError: it is not.
    """
    try:
        device = torch.device(cfg.MODEL.DEVICE)
    except RuntimeError:
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, which PyTorch does not know; use cpu, cuda or cuda:1.") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"MODEL.DEVICE is {cfg.MODEL.DEVICE} but PyTorch sees {count or 'no'} GPU here; set MODEL.DEVICE to cpu.")
    if device.type == "cuda" and num_gpus > count:
        raise ConfigError(f"{num_gpus} GPUs are asked for but PyTorch sees {count} here; lower --num-gpus.")
