"""A filled table as markdown and as a page of HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
from tabulate import tabulate

from .definition import Table
from .planning import Run
from .results import RowResult

__all__ = ["as_html", "as_markdown", "mean_and_error", "seed_values"]

_GAINS = ("AP", "HOTA")  # measures whose gain over another line is shown
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: 0.3em 0.8em; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #888 }
img { max-width: 100% }
"""


def mean_and_error(values: Sequence[float], digits: int, sign: bool = False) -> str:
    """Mean ± standard error, of the numbers that are numbers."""
    numbers = [value for value in values if np.isfinite(value)]
    if not numbers:
        return "–"
    mean = f"{round(float(np.mean(numbers)), digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # no -0.0
    return mean if len(numbers) < 2 else f"{mean} ± {np.std(numbers, ddof=1) / np.sqrt(len(numbers)):.{digits}f}"


def seed_values(result: RowResult, metric: str = "AP") -> dict[int, float]:
    """Seed -> a measure of the line's tracker, in percent."""
    return {seed: cell.score(result.row.tracker, metric) for seed, cell in result.cells.items()}


def _gain(result: RowResult, block: Sequence[RowResult], metric: str) -> str:
    """A measure over the line that this one is compared with, seed by seed."""
    if not result.row.over or not result.cells:
        return ""
    other = seed_values(next(r for r in block if r.row.label == result.row.over), metric)
    pairs = [value - other[seed] for seed, value in seed_values(result, metric).items() if seed in other]
    return mean_and_error(pairs, 1, sign=True)


def _lines(table: Table, block: Sequence[RowResult], seeds: int) -> tuple[list[str], list[list[str]]]:
    """Headers, and a line a row."""
    paper = any(row.paper for row in table.rows)
    gains = _GAINS if any(row.over for row in table.rows) else ()
    headers = [
        "",
        "training",
        *(["paper"] if paper else []),
        *(column.header for column in table.columns),
        *(f"gain in {name}" for name in gains),
    ]
    lines = []
    for result in block:
        line = [result.row.label + (f" ({len(result.cells)} of {seeds} seeds)" if 0 < len(result.cells) < seeds else ""), result.row.recipe]
        if paper:
            line.append(" ".join(f"{number:.1f}" for number in result.row.paper) or "–")
        if result.cells:
            line += [mean_and_error([c.value(result.row, cell) for cell in result.cells.values()], c.digits) for c in table.columns]
        else:
            line += [result.why, *[""] * (len(table.columns) - 1)]
        lines.append([*line, *(_gain(result, block, name) for name in gains)])
    return headers, lines


def _sentences(table: Table, results: Mapping[str, Sequence[RowResult]], run: Run, warnings: Sequence[str]) -> list[str]:
    paper = any(row.paper for row in table.rows)
    partial = [f"{r.row.label}: {r.why}." for block in results.values() for r in block if r.cells and r.why]
    numbers = ", ".join(map(str, run.seeds))
    seeds = f"mean ± standard error over seeds {numbers}" if len(run.seeds) > 1 else f"seed {numbers}"
    data = table.setting.name + (f" of generator seed {run.data_seed}" if table.setting.seeded else "")
    return [
        f"Ours: {data}, {seeds}; AP and AR of tubes, in percent.",
        *([f"Not the configs' settings: {' '.join((*run.data_options, *run.overrides))}."] if run.data_options or run.overrides else []),
        *(["Paper: AP, AP50, AP75, AR1, AR10 on YouTube-VIS 2019 val, 20 categories."] if paper else []),
        *table.notes,
        *(f"Training {_training(table, name)}." for name in table.trainings),
        *dict.fromkeys(partial),
        *warnings,
    ]


def _training(table: Table, name: str) -> str:
    """A recipe in words: its config, what it starts from and what it changes."""
    recipe = table.setting.recipes[name]
    start = f" from {recipe.start}" if recipe.start else ""
    return f"{name}: {recipe.config}{start}{' with ' if recipe.overrides else ''}{' '.join(recipe.overrides)}"


def as_markdown(table: Table, results: Mapping[str, Sequence[RowResult]], run: Run, warnings: Sequence[str] = ()) -> str:
    """The table with its notes.

    Args:
        table: its definition.
        results: of ``table_results``.
        run: that it was made in.
        warnings: more sentences below it.
    """
    parts = [f"# {table.title}"]
    for name, block in results.items():
        headers, lines = _lines(table, block, len(run.seeds))
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        parts += [*([f"## {name}"] if name else []), tabulate(lines, headers, tablefmt="github", disable_numparse=True)]
    sentences = "\n".join(f"- {sentence}" for sentence in _sentences(table, results, run, warnings))
    return "\n\n".join([*parts, sentences]) + "\n"


def as_html(
    table: Table,
    results: Mapping[str, Sequence[RowResult]],
    run: Run,
    warnings: Sequence[str] = (),
    pictures: Sequence[str] = (),
) -> str:
    """The same as a page, with pictures: files beside it."""
    title = html.escape(table.title)
    parts = [f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>', f"<h1>{title}</h1>"]
    for name, block in results.items():
        headers, lines = _lines(table, block, len(run.seeds))
        parts += [*([f"<h2>{html.escape(name)}</h2>"] if name else []), tabulate(lines, headers, tablefmt="html", disable_numparse=True)]
    sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in _sentences(table, results, run, warnings))
    images = [f'<img src="{html.escape(picture)}" alt="{html.escape(picture)}">' for picture in pictures]
    return "\n".join([*parts, f"<ul>{sentences}</ul>", *images, "</html>"]) + "\n"
