"""Faults of the configs of networks that learn from labelled videos."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode

__all__ = ["baseline_faults"]


def baseline_faults(cfg: CfgNode) -> Iterator[str]:
    """Values with which the network of MODEL.META_ARCHITECTURE does not work, or that mean nothing to it; one sentence each."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name == "MaskTrackRCNN":
        yield from _masktrack_faults(cfg)
    else:
        yield from _sipmask_faults(cfg)
    if not cfg.MODEL.MASK_ON:
        yield f"MODEL.MASK_ON is False; {name} is scored by masks."
    if cfg.MODEL.SOLO_TRACK.EMB.VIEWS != 1:
        yield f"MODEL.SOLO_TRACK.EMB.VIEWS is 2; {name} learns from pairs of frames, not of views: set it to 1."
    if cfg.INPUT.COPY_PASTE.PROB > 0:
        yield f"INPUT.COPY_PASTE.PROB is above 0; {name} learns from pairs of frames and pastes nothing: set it to 0."
    if cfg.SOLVER.CLIPS_PER_BATCH or cfg.MODEL.SOLO_TRACK.VIDEO.ENABLED:
        yield f"MODEL.SOLO_TRACK.VIDEO.ENABLED or SOLVER.CLIPS_PER_BATCH is on; {name} does not learn from unlabelled clips."


def _masktrack_faults(cfg: CfgNode) -> Iterator[str]:
    """Values with which Detectron2's Mask R-CNN on an FPN does not work."""
    for key in ("RPN", "ROI_HEADS"):
        names = cfg.MODEL[key].IN_FEATURES
        if not all(name.startswith("p") for name in names):
            yield f"MODEL.{key}.IN_FEATURES is {names}; name outputs of the FPN, as projects/baselines/configs does."


def _sipmask_faults(cfg: CfgNode) -> Iterator[str]:
    sip = cfg.MODEL.SIPMASK
    levels = [name.removeprefix("p") for name in sip.IN_FEATURES]
    if len(levels) < 3 or not all(level.isdigit() for level in levels) or levels != sorted(set(levels)):
        yield f"MODEL.SIPMASK.IN_FEATURES is {sip.IN_FEATURES}; name three or more outputs of the FPN, the finest first."
    if sip.MASK_RESOLUTION % 2:
        yield f"MODEL.SIPMASK.MASK_RESOLUTION is {sip.MASK_RESOLUTION}; it must be even, for halves of a box have their own coefficients."
    if sip.NUM_GROUPS > 0 and sip.CHANNELS % sip.NUM_GROUPS:
        yield f"MODEL.SIPMASK.CHANNELS ({sip.CHANNELS}) must be a multiple of MODEL.SIPMASK.NUM_GROUPS ({sip.NUM_GROUPS})."
