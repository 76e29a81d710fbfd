"""What follows from the meta-architecture: which data it learns from and where its number of classes stands."""

from __future__ import annotations

from functools import reduce

from detectron2.config import CfgNode

__all__ = ["ARCHITECTURES", "classes_key", "num_classes", "trains_on_videos"]

# Meta-architecture -> the key that holds its number of classes.
_CLASSES_KEYS = {
    "SOLOTrack": "MODEL.SOLO.NUM_CLASSES",
    "MaskTrackRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "SipMaskVIS": "MODEL.SIPMASK.NUM_CLASSES",
}
ARCHITECTURES = tuple(_CLASSES_KEYS)  # what MODEL.META_ARCHITECTURE may be


def trains_on_videos(cfg: CfgNode) -> bool:
    """Whether DATASETS.TRAIN names labelled videos, as for fully supervised baselines, and not labelled images."""
    return cfg.MODEL.META_ARCHITECTURE in ("MaskTrackRCNN", "SipMaskVIS")


def classes_key(cfg: CfgNode) -> str:
    """The key that holds the model's number of classes."""
    return _CLASSES_KEYS[cfg.MODEL.META_ARCHITECTURE]


def num_classes(cfg: CfgNode) -> int:
    """The model's number of classes."""
    return reduce(CfgNode.__getitem__, classes_key(cfg).split("."), cfg)
