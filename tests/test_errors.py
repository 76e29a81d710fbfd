"""Every error of the package's own is one that tools turn into a sentence."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import solotrack
from solotrack.errors import SoloTrackError


def test_all_errors_have_one_base() -> None:
    found = set()
    for module in pkgutil.walk_packages(solotrack.__path__, "solotrack."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Exception) and kind.__module__.startswith("solotrack."):
                assert issubclass(kind, SoloTrackError), kind
                found.add(kind.__name__)
    assert found >= {"CheckpointError", "ConfigError", "DatasetError", "FrameError", "NonFiniteLossError", "PlanError", "YTVISFormatError"}
