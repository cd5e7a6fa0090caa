"""Results as pictures, by matplotlib: an optional dependency, imported when a plot is asked for."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfspec_tune.errors import UsageError
from selfspec_tune.files import write_atomic
from selfspec_tune.intervals import Interval
from selfspec_tune.report.bench import model_line
from selfspec_tune.report.comparison import degenerate_lines_by_task as transfer_degenerate_lines
from selfspec_tune.report.sweep import AXIS_LABELS, Curve, curves, degenerate_lines
from selfspec_tune.report.text import UNKNOWN, times
from selfspec_tune.results import ModelInfo, SweepResult, TransferResult

SUFFIXES = (".png", ".svg")


def check_plot(path: Path) -> None:
    """Raise `UsageError` where no plot could be written in the end: another kind of file, or no matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"`plot` {path}: expected a file that ends in {' or '.join(SUFFIXES)}.")
    check_matplotlib("plot", "Without `plot` the result is printed alone.")


def check_matplotlib(what: str, otherwise: str = "") -> None:
    """Raise `UsageError` where ``what`` cannot be drawn; ``otherwise``: what to do without it."""
    if importlib.util.find_spec("matplotlib") is None:
        said = f"{what} needs matplotlib, which is not installed: pip install 'selfspec-tune[plots]'. {otherwise}"
        raise UsageError(said.rstrip())


def write_plot(result: SweepResult, path: Path) -> None:
    """Decode and end-to-end speedup with their 95 % intervals over the values. Raises `StorageError`."""
    figure = new_figure()
    axes = figure.add_subplot()
    for number, curve in enumerate(curves(result)):
        for kind, style in (("decode", "o-"), ("end to end", "s--")):
            values, ratios, errors = series(curve, kind)
            if values:
                label = kind if curve.label == "self-speculative" else f"{kind}, {curve.label}"
                axes.errorbar(values, ratios, yerr=errors, fmt=style, capsize=3, color=f"C{number}", label=label)
    axes.axhline(1.0, color="0.4", linewidth=0.8)
    if result.sweep != "temperature":
        axes.set_xscale("log", base=2)
    ticks = [point.value for point in result.points]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(AXIS_LABELS[result.sweep])
    axes.set_ylabel("speedup over plain decoding, 95 % interval")
    axes.set_title("\n".join([model_line(result.model), *degenerate_lines(result)]), fontsize="medium")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    save_figure(figure, path)


def new_figure(width: float = 7.0, height: float = 4.2) -> Any:
    """An empty picture of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a picture in the form that the file's name ends in. Raises `StorageError`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower().removeprefix("."), dpi=160)
    write_atomic(path, buffer.getvalue())


def write_curves(curves: Mapping[Any, Sequence[tuple[float, float]]], model: ModelInfo, path: Path) -> None:
    """Best so far by predicted decode speedup against minutes of searching, a line for each name."""
    figure = new_figure()
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.step([seconds / 60 for seconds, _ in curve], [speedup for _, speedup in curve], where="post", label=name)
    axes.set_xlabel("minutes of searching, calibration included")
    axes.set_ylabel("decode speedup predicted on selection prompts")
    axes.set_title(model_line(model), fontsize="medium")
    axes.legend(fontsize="small")
    save_figure(figure, path)


def write_transfer(result: TransferResult, path: Path) -> None:
    """End-to-end speedup of every draft on every task as a heat map, white at 1. Raises `StorageError`."""
    columns = [*result.tasks, "together"]
    found = [[*(row.by_task.get(task) for task in result.tasks), row.overall] for row in result.rows]
    values = [[math.nan if interval is None else interval.value for interval in row] for row in found]
    farthest = max((abs(value - 1) for row in values for value in row if not math.isnan(value)), default=0.0) or 1.0
    figure = new_figure(1.8 + 1.0 * len(columns), 1.2 + 0.6 * len(found))
    axes = figure.add_subplot()
    axes.imshow(values, cmap="RdBu", vmin=1 - farthest, vmax=1 + farthest, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(found)), [row.name for row in result.rows])
    axes.set_xlabel("test prompts of")
    axes.set_ylabel("draft searched for")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            # Dark cells need light letters.
            color = "white" if abs(value - 1) > 0.7 * farthest else "black"
            axes.text(x, y, UNKNOWN if math.isnan(value) else times(value), ha="center", va="center", color=color)
    title = [f"{model_line(result.model)} · end-to-end speedup", *transfer_degenerate_lines(result)]
    axes.set_title("\n".join(title), fontsize="medium")
    save_figure(figure, path)


def series(curve: Curve, kind: str) -> tuple[list[float], list[float], list[list[float]]]:
    """A curve's values, its ratios, and how far the intervals reach below and above; lossy points are left out."""
    found: list[tuple[float, Interval]] = []
    for point, method in curve.points:
        interval = method.decode_speedup if kind == "decode" else method.end_to_end_speedup
        if interval is not None:
            found.append((point.value, interval))
    below = [interval.value - interval.low for _, interval in found]
    above = [interval.high - interval.value if math.isfinite(interval.high) else 0.0 for _, interval in found]
    return [value for value, _ in found], [interval.value for _, interval in found], [below, above]
