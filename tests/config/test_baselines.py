"""What networks that learn from labelled videos refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from solotrack.config import ConfigError, load_config
from solotrack.config.baselines import baseline_faults
from tests import tiny


@pytest.mark.parametrize("network", [tiny.masktrack, tiny.sipmask])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"MODEL.MASK_ON": False}, r"MODEL\.MASK_ON is False; (MaskTrackRCNN|SipMaskVIS) is scored by masks"),
        ({"MODEL.SOLO_TRACK.EMB.VIEWS": 2}, "VIEWS is 2; .* learns from pairs of frames"),
        ({"INPUT.COPY_PASTE.PROB": 0.5}, "pastes nothing"),
        ({"SOLVER.CLIPS_PER_BATCH": 2}, "does not learn from unlabelled clips"),
        ({"MODEL.SOLO_TRACK.VIDEO.ENABLED": True}, "does not learn from unlabelled clips"),
    ],
)
def test_what_goes_with_neither(network: Callable[[], dict], changes: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny.config(network() | changes)


@pytest.mark.parametrize(
    ("network", "changes", "text"),
    [
        (tiny.masktrack, {"MODEL.RPN.IN_FEATURES": ["res4"]}, r"MODEL\.RPN\.IN_FEATURES is \['res4'\]; name outputs of the FPN"),
        (tiny.masktrack, {"DATASETS.CLASS_NAMES": ["a"]}, r"1 names; give MODEL\.ROI_HEADS\.NUM_CLASSES \(4\)"),
        (
            tiny.sipmask,
            {"MODEL.SIPMASK.IN_FEATURES": ["p3", "p4"]},
            r"\['p3', 'p4'\]; name three or more outputs of the FPN",
        ),
        (tiny.sipmask, {"MODEL.SIPMASK.IN_FEATURES": ["p3", "p4", "p2"]}, "the finest first"),
        (tiny.sipmask, {"MODEL.SIPMASK.IN_FEATURES": ["res3", "res4", "res5"]}, "outputs of the FPN"),
        (tiny.sipmask, {"MODEL.SIPMASK.MASK_RESOLUTION": 7}, "MASK_RESOLUTION is 7; it must be even"),
        (tiny.sipmask, {"MODEL.SIPMASK.CHANNELS": 18}, r"CHANNELS \(18\) must be a multiple of MODEL\.SIPMASK\.NUM_GROUPS \(4\)"),
        (tiny.sipmask, {"MODEL.SIPMASK.NUM_GROUPS": 0}, r"MODEL\.SIPMASK\.NUM_GROUPS is 0; it must be a number at least 1"),
        (tiny.sipmask, {"MODEL.SIPMASK.TRACK_JITTER": 2.0}, r"TRACK_JITTER is 2\.0; it must be a number at least 0 and at most 1"),
        (tiny.sipmask, {"DATASETS.CLASS_NAMES": ["a"]}, r"1 names; give MODEL\.SIPMASK\.NUM_CLASSES \(4\)"),
    ],
)
def test_what_goes_not_with_one(network: Callable[[], dict], changes: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny.config(network() | changes)


@pytest.mark.parametrize("network", [tiny.masktrack, tiny.sipmask])
def test_what_other_networks_are_told_does_not_matter(network: Callable[[], dict]) -> None:
    assert not list(baseline_faults(tiny.config(network() | {"MODEL.SOLO_TRACK.EMB.ENABLED": False})))
    load_config("", ["MODEL.SIPMASK.MASK_RESOLUTION", "7"])
