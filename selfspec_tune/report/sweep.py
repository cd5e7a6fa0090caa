"""A sweep as a table, and as a plot of characters: how the speedup moves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from selfspec_tune.report import text
from selfspec_tune.report.bench import legend, lossless, model_line, of_limit, sessions_lines, skip_text
from selfspec_tune.report.text import SELF_SPECULATIVE
from selfspec_tune.results import MethodResult, SweepPoint, SweepResult
from selfspec_tune.results.metrics import with_decode_rates

AXIS_LABELS = {"context": "prompt tokens", "temperature": "temperature", "max-draft": "longest draft"}
PLOT_LEGEND = "●: decode speedup, ─: its 95 % interval, │: 1.0×."
_PLOT_WIDTH = 56
_WIDE = 100
# The columns of the table, each shown from a console width on.
_COLUMNS = {
    "decode": 0,
    "end to end": 0,
    "accept": 0,
    "MAT": 0,
    "tok/s": 66,
    "of limit": 76,
    "A-A": 132,
    "lossless": 0,
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One skip set over all values; ``points`` hold its figures where it was measured."""

    label: str
    points: tuple[tuple[SweepPoint, MethodResult], ...]


def curves(result: SweepResult) -> list[Curve]:
    """A curve for every skip set, named by the set where there are several."""
    found: dict[str, list[tuple[SweepPoint, MethodResult]]] = {}
    for point in result.points:
        runs = [run for run in result.runs if run.point == point.value]
        for method in with_decode_rates(point.methods, runs):
            if method.name == SELF_SPECULATIVE:
                found.setdefault(method.id, []).append((point, method))
    ids = list(found)
    labels = [skip_text(pairs[0][1], result.model.num_layers) for pairs in found.values()]
    if len(set(labels)) < len(labels):
        labels = ids
    if len(ids) == 1:
        labels = [SELF_SPECULATIVE]
    return [Curve(label, tuple(pairs)) for label, pairs in zip(labels, found.values(), strict=True)]


def print_sweep(console: Console, result: SweepResult) -> None:
    """Table and plot of every skip set, how the points were made, and the warnings."""
    console.print(sweep_report(result, console.width))


def sweep_report(result: SweepResult, width: int) -> Group:
    """Everything a sweep says."""
    read = ", which the search had read" if result.in_sample else ""
    title = f"{model_line(result.model)} · {AXIS_LABELS[result.sweep]} · {result.split} prompts{read}"
    parts: list[RenderableType] = [Text(title, style="bold")]
    for curve in curves(result):
        if curve.label != SELF_SPECULATIVE:
            parts.append(Text(f"\n{curve.label}"))
        parts.append(curve_table(result, curve, width))
        parts += [*map(Text, plot_rows(curve, min(_PLOT_WIDTH, width - 12))), Text("")]
        parts += [Text(line) for line in position_lines(curve)]
    parts += [Text(line, style="dim") for line in (PLOT_LEGEND, legend(_headers(width)), result.description)]
    parts.append(Text(""))
    parts += [Text(line) for line in _check_lines(result)]
    parts += [Text("warning: ", style="yellow").append(line, style="default") for line in result.warnings]
    return Group(*parts)


def curve_table(result: SweepResult, curve: Curve, width: int) -> Table:
    """A row for each value; a narrow console gets fewer columns and the intervals under the figures."""
    gap = " " if width >= _WIDE else "\n"
    headers = _headers(width)
    table = text.table()
    table.add_column(AXIS_LABELS[result.sweep], justify="right")
    for header in headers:
        table.add_column(header, justify="left" if header == "lossless" else "right", no_wrap=True)
    for point, method in curve.points:
        cells = {
            "decode": text.speedup(method.decode_speedup, gap),
            "end to end": text.speedup(method.end_to_end_speedup, gap),
            "accept": text.percent(method.acceptance_rate),
            "MAT": text.figure(method.mean_accepted_tokens, 2),
            "tok/s": text.figure(method.decode_tokens_per_second, 1),
            "of limit": of_limit(method),
            "A-A": text.speedup(point.a_a.decode if point.a_a else None),
            "lossless": lossless(method.lossless, full=width >= _WIDE),
        }
        table.add_row(f"{point.value:g}", *(Text(cells[header]) for header in headers))
    return table


def _headers(width: int) -> list[str]:
    return [header for header, least in _COLUMNS.items() if width >= least]


def position_lines(curve: Curve) -> list[str]:
    """How far drafts were right at each value."""
    shares = [(point.value, text.by_position(method.by_position)) for point, method in curve.points]
    return ["Accepted by draft position:", *(f"  {value:g}: {share}" for value, share in shares)]


def plot_rows(curve: Curve, width: int) -> list[str]:
    """The decode speedup at every value as a line of characters (`PLOT_LEGEND`), and the scale below."""
    intervals = [(point, method.decode_speedup) for point, method in curve.points]
    bounds = [x for _, i in intervals if i for x in (i.value, i.low, i.high) if math.isfinite(x)]
    if not bounds:
        return []
    low, high = min(1.0, *bounds), max(1.0, *bounds)
    span = max(high - low, 0.01)

    def column(ratio: float) -> int:
        return round((min(max(ratio, low), high) - low) / span * (width - 1))

    rows = []
    for point, interval in intervals:
        cells = [" "] * width
        if interval:
            for place in range(column(interval.low), column(interval.high) + 1):
                cells[place] = "─"
        cells[column(1.0)] = "┼" if cells[column(1.0)] == "─" else "│"
        if interval:
            cells[column(interval.value)] = "●"
        rows.append(f"{point.value:>8g}  {''.join(cells)}".rstrip())
    scale = f"{low:.2f}×" + f"{high:.2f}×".rjust(width - len(f"{low:.2f}×"))
    return [*rows, f"{'decode':>8}  {scale}"]


def _check_lines(result: SweepResult) -> list[str]:
    return [*degenerate_lines(result), *_baseline_lines(result), *sessions_lines(result.provenance)]


def degenerate_lines(result: SweepResult) -> list[str]:
    """The share of degenerate answers at each value, and how many are too short to tell; empty where nobody looked."""
    methods = [[m for m in point.methods if m.name == SELF_SPECULATIVE] for point in result.points]
    shares = [max((m.degenerate_share for m in of if m.degenerate_share is not None), default=None) for of in methods]
    short = [max((m.num_too_short for m in of), default=0) for of in methods]
    found = [f"{text.percent(share)} at {point.value:g}" for point, share in zip(result.points, shares, strict=True)]
    known = [share for share in shares if share is not None]
    said = "not known" if not known else ", ".join(found) if any(known) or len(known) < len(found) else "none"
    too_short = f"; up to {max(short)} too short to tell" if any(short) else ""
    return [f"Degenerate answers: {said}{too_short}."] if known or too_short else []


def _baseline_lines(result: SweepResult) -> Iterator[str]:
    null = [point.a_a.decode.value for point in result.points if point.a_a]
    if null:
        yield f"Baseline against itself: {min(null):.2f}–{max(null):.2f}× decode over the values."
    ratios = [point.baseline_vs_generate for point in result.points if point.baseline_vs_generate is not None]
    if ratios:
        yield f"Our baseline is {min(ratios):.2f}–{max(ratios):.2f}× as fast as model.generate."
    limits = [point.memory_limit.tokens_per_second for point in result.points if point.memory_limit]
    if limits:
        yield f"Memory limit of plain bfloat16 decoding: {min(limits):.1f}–{max(limits):.1f} tok/s over the values."
