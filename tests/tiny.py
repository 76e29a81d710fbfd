"""A data set and a model that are small enough to be trained within a test, with the real files, config keys and code paths."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage

from solotrack.config import load_config
from solotrack.data.catalog import register_custom
from solotrack.data.loader import build_train_loader
from solotrack.data.synthetic import write_synthetic
from solotrack.engine.trainer import TrainingStep, build_optimizer

SIZE = 64  # pixels, of images and frames
TRAIN_IMAGES, VAL_IMAGES, VIDEOS, FRAMES = 32, 2, 2, 3

CONFIG = {
    "VERSION": 2,
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "build_small_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SMALL_RESNET.STEM_CHANNELS": 8,
    "MODEL.SMALL_RESNET.CHANNELS": [8, 12, 16, 24],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.SOLO.NUM_CLASSES": 4,
    "MODEL.SOLO.IN_FEATURES": ["p2", "p3", "p4"],
    "MODEL.SOLO.STRIDES": [4, 4, 8],
    "MODEL.SOLO.NUM_GRIDS": [8, 6, 4],
    "MODEL.SOLO.SCALE_RANGES": [[1, 20], [14, 32], [24, 128]],
    "MODEL.SOLO.NUM_CONVS": 1,
    "MODEL.SOLO.CHANNELS": 16,
    "MODEL.SOLO.NUM_GROUPS": 4,
    "MODEL.SOLO_TRACK.EMB.DIM": 8,
    "MODEL.SOLO_TRACK.EMB.NUM_CONVS": 1,
    "MODEL.SOLO_TRACK.EMB.CHANNELS": 16,
    "MODEL.SOLO_TRACK.ME.START_ITER": 2,
    "INPUT.MIN_SIZE_TRAIN": [SIZE],
    "INPUT.MIN_SIZE_TEST": SIZE,
    "DATASETS.TRAIN": ["tiny_train"],
    "DATASETS.TEST": [],
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 0.002,
    "SOLVER.WARMUP_ITERS": 4,
    "SOLVER.MAX_ITER": 8,
    "SOLVER.STEPS": [],
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "TEST.FRAMES_PER_BATCH": 4,
    "TEST.DECODE_WORKERS": 0,
    "TRACKER_HEADS.CALIBRATION.IMAGES": 2,
}


@functools.cache
def data_root() -> Path:
    """The data set, written once a process and removed with it."""
    folder = _temporary_folder()
    counts = {"images": TRAIN_IMAGES, "val_images": VAL_IMAGES, "videos": VIDEOS, "unlabelled_videos": 1, "frames": FRAMES}
    write_synthetic(Path(folder.name) / "tiny", seed=5, size=SIZE, **counts)
    return Path(folder.name) / "tiny"


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="solotrack-tests-")  # deleted when the interpreter ends


def custom_sets(root: Path) -> dict[str, list[list[str]]]:
    """``DATASETS.CUSTOM`` of the data set: tiny_train, tiny_val, tiny_test and tiny_unlabelled."""
    return {
        "DATASETS.CUSTOM.IMAGES": [[f"tiny_{split}", str(root / f"{split}.json"), str(root / split)] for split in ("train", "val")],
        "DATASETS.CUSTOM.VIDEOS": [
            [f"tiny_{split}", str(root / f"{split}.json"), str(root / "videos" / split)] for split in ("test", "unlabelled")
        ],
    }


def options(changes: dict[str, object] | None = None) -> dict[str, object]:
    """Config key -> value of the tiny model on the tiny data, with ``changes``."""
    return CONFIG | custom_sets(data_root()) | (changes or {})


def words(changes: dict[str, object]) -> list[str]:
    """KEY VALUE KEY VALUE ..., as on a command line."""
    return [word for key, value in changes.items() for word in (key, value if isinstance(value, str) else repr(value))]


def config(changes: dict[str, object] | None = None) -> CfgNode:
    """The tiny config, its data sets registered."""
    cfg = load_config("", words(options(changes)))
    register_custom(cfg)
    return cfg


def write_config(path: str | os.PathLike, changes: dict[str, object] | None = None) -> str:
    """Write the tiny config as yaml; returns its path."""
    tree: dict = {}
    for key, value in options(changes).items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    Path(path).write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def model(cfg: CfgNode, seed: int = 0, spread: float = 0.0) -> torch.nn.Module:
    """A model with random weights.

    Args:
        cfg: its config.
        seed: of the weights.
        spread: standard deviation of SOLO's and the embedding head's weights; 0 leaves them as they start. A large one gives every image
            detections and every cell an embedding of its own.
    """
    torch.manual_seed(seed)
    built = build_model(cfg)
    if spread:
        for head in (built.head, built.embedding_head):
            for parameter in head.parameters() if head is not None else ():
                torch.nn.init.normal_(parameter, std=spread)
    return built


def gradients(model: torch.nn.Module, batch: list[dict], only: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of one loss of a network that learns from pairs: by parameter, and that of the batch's images (frames, then references)."""
    images = []
    preprocess = model.preprocess_image

    def keep(inputs: list[dict]):
        result = preprocess(inputs)
        result.tensor.requires_grad_()
        images.append(result.tensor)
        return result

    model.preprocess_image = keep
    model(batch)[only].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, images[0].grad


@functools.cache
def trained() -> tuple[CfgNode, torch.nn.Module]:
    """A config, and a model trained by it for a few seconds, once a process: it finds about half of the training images' objects."""
    cfg = config(
        {
            **{"MODEL.SOLO_TRACK.EMB.SIM": "cosine", "MODEL.SOLO_TRACK.EMB.TEMPERATURE": 0.1, "MODEL.SOLO_TRACK.ME.MODE": "none"},
            **{"SOLVER.BASE_LR": 0.02, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.WARMUP_ITERS": 20, "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"},
            **{"INPUT.VIEWS.SHIFT": 0.15, "INPUT.VIEWS.ROTATION": 10.0, "INPUT.VIEWS.SCALE_RANGE": [0.9, 1.1]},
            "SOLVER.MAX_ITER": 200,
            "TRACKER_HEADS.CALIBRATION.IMAGES": 100,
        }
    )
    built = model(cfg).train()
    optimizer = build_optimizer(cfg, built)
    schedule = build_lr_scheduler(cfg, optimizer)
    step = TrainingStep(built, build_train_loader(cfg), optimizer, "cpu", None, 35.0)
    with EventStorage(0) as storage:
        for _ in range(cfg.SOLVER.MAX_ITER):
            step.run_step()
            schedule.step()
            storage.step()
    return cfg, built.eval()


def masktrack() -> dict[str, object]:
    """Config changes that make it MaskTrack R-CNN, trained on the labelled test videos."""
    return {
        "MODEL.META_ARCHITECTURE": "MaskTrackRCNN",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[10], [18], [28]],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 60,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 60,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3"],
        "MODEL.ROI_HEADS.NUM_CLASSES": 4,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "MODEL.TRACK_HEAD.FC_DIM": 256,
        "TEST.DETECTIONS_PER_IMAGE": 10,
        "DATASETS.TRAIN": ["tiny_test"],
        "TRACKER_HEADS.NULL_LOGIT": 0.0,
        "TRACKER_HEADS.PROTO_UPDATE": "last",
    }


def sipmask() -> dict[str, object]:
    """Config changes that make it SipMask-VIS, trained on the labelled test videos."""
    return {
        "MODEL.META_ARCHITECTURE": "SipMaskVIS",
        "MODEL.SIPMASK.NUM_CLASSES": 4,
        "MODEL.SIPMASK.IN_FEATURES": ["p2", "p3", "p4"],
        "MODEL.SIPMASK.NUM_CONVS": 1,
        "MODEL.SIPMASK.CHANNELS": 16,
        "MODEL.SIPMASK.NUM_GROUPS": 4,
        "MODEL.SIPMASK.NUM_BASES": 8,
        "MODEL.SIPMASK.MASK_RESOLUTION": 8,
        "MODEL.SIPMASK.TRACK_CONVS": 1,
        "MODEL.SIPMASK.TRACK_DIM": 32,
        "TEST.DETECTIONS_PER_IMAGE": 10,
        "DATASETS.TRAIN": ["tiny_test"],
        "TRACKER_HEADS.METRIC": "dot",
        "TRACKER_HEADS.NULL_LOGIT": 0.0,
        "TRACKER_HEADS.PROTO_UPDATE": "last",
    }


def detect_everything() -> dict[str, object]:
    """Config changes with which a model of random weights detects something in every image."""
    return {"MODEL.SOLO.UPDATE_THRESH": 0.0, "TRACKER_HEADS.SCORE_THRESH": 0.0}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], keys: Sequence[str] | None = None) -> list[str]:
    """Names of the entries of two state dicts that are not bitwise equal (NaN equals NaN)."""
    assert a.keys() == b.keys()
    return [key for key in (a if keys is None else keys) if not torch.equal(a[key].nan_to_num(1e9), b[key].nan_to_num(1e9))]
