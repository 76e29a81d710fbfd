"""Pictures of a table: its AP with error bars beside the paper's, and the losses of its trainings."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .definition import Table
from .planning import Run, cell_folder
from .report import seed_values
from .results import RowResult, read_metrics

__all__ = ["plot_ap", "plot_losses"]

_OURS, _PAPER = "#1f77b4", "#d62728"
_TERMS = tuple(matplotlib.colormaps["tab20"](index) for index in (*range(0, 20, 2), *range(1, 20, 2)))  # strong ones first


def plot_ap(table: Table, results: Mapping[str, Sequence[RowResult]]) -> bytes:
    """A line a row: each seed's AP, their mean with its standard error, and the paper's AP. A png."""
    count = sum(map(len, results.values()))
    figure = Figure(figsize=(9, 1.2 + 0.34 * count + 0.5 * len(results)), layout="constrained")
    heights = [len(block) + 0.5 for block in results.values()]
    axes = figure.subplots(len(results), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, (name, block) in zip(axes, results.items(), strict=True):
        for y, result in enumerate(block):
            values = [value for value in seed_values(result).values() if np.isfinite(value)]
            if values:
                error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
                axis.plot(values, [y] * len(values), "o", color=_OURS, alpha=0.35, markersize=4, markeredgewidth=0)
                axis.errorbar(np.mean(values), y, xerr=error, fmt="o", color=_OURS, capsize=3, markersize=6)
            else:
                axis.text(0.01, y, result.why.partition(":")[0], transform=axis.get_yaxis_transform(), va="center", color="#888", size=8)
            if result.row.paper:
                axis.plot(result.row.paper[0], y, "D", color=_PAPER, markersize=6, markerfacecolor="none")
        axis.set_yticks(range(len(block)), [result.row.label for result in block])
        axis.set_ylim(len(block) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        axis.set_title(name or table.title, loc="left", fontsize=10)
    axes[-1].set_xlabel("tube AP, percent")
    axes[-1].set_xlim(left=-0.02 * max(axes[-1].get_xlim()[1], 1))  # dots at 0 are whole
    handles = [axes[-1].plot([], [], "o", color=_OURS)[0]]
    labels = [f"ours: {table.setting.name} (mean, standard error; small: seeds)"]
    if any(row.paper for row in table.rows):
        handles.append(axes[-1].plot([], [], "D", color=_PAPER, markerfacecolor="none")[0])
        labels.append("paper: YouTube-VIS 2019 val")
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return _png(figure)


def plot_losses(table: Table, run: Run) -> bytes | None:
    """The terms of each training's loss over its iterations, a thin line a seed; a png, or None if nothing was trained yet.

    The scale is logarithmic, so terms that are negative (an entropy that is maximised) are drawn without their sign.
    """
    curves = {}
    for name in table.trainings:
        found = [read_metrics(os.path.join(cell_folder(run, name, seed), "metrics.json")) for seed in run.seeds]
        if any(found):
            curves[name] = [metrics for metrics in found if metrics]
    if not curves:
        return None
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.2 * columns, 0.6 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    terms = sorted({term for seeds in curves.values() for metrics in seeds for term in metrics})
    colors = {term: _TERMS[number % len(_TERMS)] for number, term in enumerate(terms)}
    for axis, (name, seeds) in zip(axes, curves.items(), strict=False):
        for metrics in seeds:
            for term, (iterations, values) in metrics.items():
                axis.plot(iterations, np.abs(values), ".-", color=colors[term], linewidth=0.9, markersize=2, alpha=0.8)
        axis.set_yscale("log")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(curves) :]:
        axis.set_axis_off()
    negative = {term for seeds in curves.values() for metrics in seeds for term, (_, values) in metrics.items() if np.median(values) < 0}
    labels = [("−" if term in negative else "") + term.removeprefix("loss_").replace("_", " ") for term in terms]
    handles = [axes[0].plot([], [], color=color)[0] for color in colors.values()]
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
