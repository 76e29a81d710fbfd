"""What follows from the meta-architecture: which data it learns from and where its number of classes stands."""

from __future__ import annotations

from detectron2.config import CfgNode

__all__ = ["classes_key", "num_classes", "trains_on_videos"]


def trains_on_videos(cfg: CfgNode) -> bool:
    """Whether DATASETS.TRAIN names labelled videos, as for fully supervised baselines, and not labelled images."""
    return cfg.MODEL.META_ARCHITECTURE == "MaskTrackRCNN"


def classes_key(cfg: CfgNode) -> str:
    """The key that holds the model's number of classes."""
    return "MODEL.ROI_HEADS.NUM_CLASSES" if cfg.MODEL.META_ARCHITECTURE == "MaskTrackRCNN" else "MODEL.SOLO.NUM_CLASSES"


def num_classes(cfg: CfgNode) -> int:
    """The model's number of classes."""
    return cfg.MODEL.ROI_HEADS.NUM_CLASSES if cfg.MODEL.META_ARCHITECTURE == "MaskTrackRCNN" else cfg.MODEL.SOLO.NUM_CLASSES
