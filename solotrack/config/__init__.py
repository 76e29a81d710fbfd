"""The config: defaults, checks and loading."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence

import yaml
from detectron2.config import CfgNode, get_cfg

from .checks import ConfigError, check_config, check_device, flatten
from .defaults import add_solotrack_config, tracker_similarity
from .models import classes_key, num_classes, trains_on_videos

__all__ = [
    "ConfigError",
    "add_solotrack_config",
    "check_config",
    "check_device",
    "classes_key",
    "load_config",
    "num_classes",
    "tracker_similarity",
    "trains_on_videos",
]


def load_config(config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults + SOLO-Track's + a yaml file + command-line overrides, checked.

    Args:
        config_file: path of a yaml file; "" for the defaults alone.
        overrides: KEY VALUE KEY VALUE ..., as on the command line.

    Raises:
        ConfigError: a key that does not exist (with the nearest that does), a value of the wrong type, or one that cannot work.
        FileNotFoundError: no such config file.
    """
    cfg = get_cfg()
    add_solotrack_config(cfg)
    known = flatten(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"There is no config file {config_file}; check the path (relative to {os.getcwd()}).")
        with _faults_explained(known, f"{config_file} is not a config file"):
            cfg.merge_from_file(config_file, allow_unsafe=False)  # yaml alone, no Python objects
    with _faults_explained(known, "Config overrides must be KEY VALUE pairs"):
        cfg.merge_from_list(list(overrides))
    emptied = [key for key, value in flatten(cfg).items() if value is None and known.get(key) is not None]
    if emptied:
        raise ConfigError(f"{', '.join(emptied)} must have a value, not None.")
    check_config(cfg)
    return cfg


@contextlib.contextmanager
def _faults_explained(known: Iterable[str], otherwise: str) -> Iterator[None]:
    """Turn what yacs raises into a ConfigError that names the key, or begins with ``otherwise`` where it is not about a key."""
    try:
        yield
    except (KeyError, AssertionError, ValueError, AttributeError, TypeError, RecursionError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        missing = re.search(r"Non-existent (?:config )?key: ([\w.]+)", text)
        mistyped = re.search(r"Type mismatch \(<class '([\w.]+)'> vs\. <class '([\w.]+)'>\).* for config key: ([\w.]+)", text)
        if missing:
            near = difflib.get_close_matches(missing[1], known, n=3, cutoff=0.5)
            text = f"There is no config key {missing[1]}." + (f" Did you mean {' or '.join(near)}?" if near else "")
        elif mistyped:
            wanted, given = (name.rpartition(".")[2].replace("CfgNode", "section") for name in mistyped.groups()[:2])
            hint = "; write 1.0 for 1" if (wanted, given) == ("float", "int") else ""
            text = f"{mistyped[3]} must be of type {wanted}, not {given}{hint}."
        else:
            text = f"{otherwise}: {text}"
        raise ConfigError(text) from error
