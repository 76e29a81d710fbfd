"""Clocks, tables and the machine they are from."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from solotrack.config import load_config
from solotrack.data.catalog import register_custom
from solotrack.files import atomic_write

__all__ = ["Stages", "alternate", "config", "count_syncs", "describe_machine", "ratio", "report", "row", "stage_rows", "synchronize"]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(calls: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, ``repeats`` times in turn after two rounds for warming up."""
    seconds = {name: [] for name in calls}
    for turn in range(-2, repeats):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class Stages:
    """Exclusive time of nested stages: an inner one stops the clock of the one around it. On a GPU every change of stage waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._since = 0.0

    def _lap(self) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._stack:
            self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._lap()
        self._stack.append(name)
        try:
            yield
        finally:
            self._lap()
            self._stack.pop()

    def switch(self, name: str) -> None:
        """End the innermost stage and begin another in its place."""
        self._lap()
        self._stack[-1] = name

    def wrap(self, owner: object, attribute: str, name: str) -> None:
        """Time every call of ``owner.attribute`` as stage ``name``."""
        function = getattr(owner, attribute)

        def timed(*args: object, **kwargs: object) -> object:
            with self.stage(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)

    def collect(self) -> dict[str, float]:
        """The seconds so far; the clock starts anew."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


def row(name: str, seconds: Sequence[float], **more: object) -> dict[str, object]:
    """A row of the table: median and quartiles in ms."""
    low, median, high = (1000 * np.quantile(seconds, (0.25, 0.5, 0.75))).tolist()
    return {"": name, "median ms": median, "25 %": low, "75 %": high, **more}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the ratios turn by turn."""
    return float(np.median(np.asarray(slow) / np.asarray(fast)))


def stage_rows(samples: Sequence[Mapping[str, float]]) -> list[dict[str, object]]:
    """A row a stage, in order of appearance, with its share of all stages."""
    names = list(dict.fromkeys(name for sample in samples for name in sample))
    whole = sum(np.median([sample.get(name, 0.0) for sample in samples]) for name in names)
    rows = []
    for name in names:
        seconds = [sample.get(name, 0.0) for sample in samples]
        rows.append(row(name, seconds, **{"share %": 100 * float(np.median(seconds)) / whole}))
    return rows


def describe_machine(device: torch.device) -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = models[0] if models else cpu
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}" if device.type == "cuda" else "cpu"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(load, 2),
        "torch": torch.__version__,
        "device": name,
    }


def report(args: argparse.Namespace, rows: list[dict[str, object]], samples: object, notes: Sequence[str] = ()) -> None:
    """Print the table and write the json file."""
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g", missingval=""))
    for note in notes:
        print(note)
    print(f"{args.repeats} repeats; " + ", ".join(f"{key} {value}" for key, value in args.machine.items()))
    if args.json:
        options = {key: value for key, value in vars(args).items() if key not in ("run", "device", "machine", "json")}
        content = {"options": options, "machine": args.machine, "rows": rows, "notes": list(notes), "seconds": samples}
        with atomic_write(args.json) as file:
            json.dump(content, file, indent=1)


def count_syncs(call: Callable[[], object]) -> Counter[str]:
    """Place in the source -> how often the host waited there for the GPU, as PyTorch notices it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))


def config(args: argparse.Namespace, *overrides: str) -> CfgNode:
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", str(args.device), *overrides])
    register_custom(cfg)
    return cfg
