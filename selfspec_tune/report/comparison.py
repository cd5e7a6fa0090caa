"""Searches side by side: strategies under equal time, and drafts of each task on every task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfspec_tune.intervals import Interval
from selfspec_tune.report import text
from selfspec_tune.report.bench import bench_title, degenerate_lines, legend, limit_lines, model_line
from selfspec_tune.results import RouterResult, TransferResult

if TYPE_CHECKING:
    from selfspec_tune.bench.compare import Comparison

_FIGURE, _SPAN = 6, 11  # characters of a column that holds speedups alone, or their intervals too
_TOGETHER = "together"
_COLUMNS = ("strategy", "after", "decode", "end to end", "accept", "skipped")
LEGEND = (
    "End-to-end speedup over plain decoding on each task's test prompts; *: the task that the draft was searched for."
)
_WHO = {
    "own task": "A draft for each task, picked by the prompt's own task",
    "nearest task": "Picked by the task whose calibration prompts are most alike",
}


def print_comparison(console: Console, comparison: Comparison) -> None:
    """What each strategy found, when, and what it is worth on prompts that no search read."""
    console.print(Text(bench_title(comparison.bench), style="bold"))
    console.print(comparison_table(comparison))
    console.print(Text(legend(_COLUMNS), style="dim"))
    for line in limit_lines(comparison.bench):
        console.print(Text(line))
    for line in degenerate_lines(comparison.bench):
        console.print(Text(line))


def comparison_table(comparison: Comparison) -> Table:
    """A row for each strategy, and for each earlier time of it."""
    methods = {method.id: method for method in comparison.bench.methods}
    table = Table(box=None, pad_edge=False)
    for header in _COLUMNS:
        table.add_column(header, justify="left" if header in ("strategy", "skipped") else "right")
    for entry in comparison.entries:
        method = methods[entry.method]
        table.add_row(
            entry.strategy.value,
            text.duration(entry.seconds),
            text.speedup(method.decode_speedup),
            text.speedup(method.end_to_end_speedup),
            text.percent(method.acceptance_rate),
            str(entry.draft.skip_set),
        )
    return table


def print_transfer(console: Console, result: TransferResult) -> None:
    """Table, routers and warnings at the console's width."""
    console.print(Text(f"{model_line(result.model)} · test prompts of {len(result.tasks)} tasks", style="bold"))
    console.print(transfer_table(result, console.width))
    console.print(Text(LEGEND, style="dim"))
    console.print()
    for line in [*degenerate_lines_by_task(result), *router_lines(result)]:
        console.print(Text(line))
    for warning in result.warnings:
        console.print(Text("warning: ", style="yellow").append(warning, style="default"))
    winners = any(router.wins for router in result.routers)
    console.print(Text(router_verdict(result), style="bold green" if winners else "bold yellow"))


def transfer_table(result: TransferResult, width: int) -> Table:
    """A row for each draft, a column for each task; a narrow console gets no intervals, or a row for each pair."""
    first = 2 + max(len("draft of"), *(len(row.name) for row in result.rows))
    names = [len(name) for name in (*result.tasks, _TOGETHER)]
    if width < first + sum(2 + max(_FIGURE, name) for name in names):
        return _long_table(result)
    gap = "\n" if width >= first + sum(2 + max(_SPAN, name) for name in names) else None
    table = text.table("draft of")
    for task, number in result.tasks.items():
        table.add_column(Text(f"{task}\n({number})"), justify="right", no_wrap=True)
    table.add_column(f"{_TOGETHER}\n({sum(result.tasks.values())})", justify="right", no_wrap=True)
    for row in result.rows:
        cells = [_cell(row.by_task.get(task), gap, is_own=task == row.name) for task in result.tasks]
        table.add_row(Text(row.name), *map(Text, [*cells, _cell(row.overall, gap)]))
    return table


def _long_table(result: TransferResult) -> Table:
    table = text.table("draft of", "prompts of")
    table.add_column("end to end", justify="right", no_wrap=True)
    for row in result.rows:
        for task in result.tasks:
            table.add_row(Text(row.name), Text(task), Text(_cell(row.by_task.get(task), " ", is_own=task == row.name)))
        table.add_row(Text(row.name), _TOGETHER, Text(_cell(row.overall, " ")))
    return table


def _cell(interval: Interval | None, gap: str | None, *, is_own: bool = False) -> str:
    """A speedup, marked on the draft's own task, with its bounds after the ``gap`` where there is one."""
    if interval is None:
        return text.UNKNOWN
    figure = f"{text.times(interval.value)}{'*' if is_own else ''}"
    bounds = text.bounds(interval)
    return f"{figure}{gap}[{bounds}]" if gap and bounds else figure


def degenerate_lines_by_task(result: TransferResult) -> list[str]:
    """The share of degenerate answers among all, and by task; empty where it is not known."""
    known = [row for row in result.rows if row.degenerate_share is not None]
    if not known:
        return []
    row = max(known, key=lambda row: row.degenerate_share or 0.0)
    by_task = [f"{task} {text.percent(share)}" for task, share in row.degenerate_by_task.items() if share]
    several = f" ({', '.join(by_task)}), counted in the figures" if by_task else ""
    return [f"Degenerate answers: {text.percent(row.degenerate_share)}{several}."]


def router_lines(result: TransferResult) -> list[str]:
    """What the single draft and each router got, a sentence each."""
    single = result.row(result.single)
    lines = [
        f"One draft for everything: {single.name}, the fastest on selection prompts "
        f"({text.speedup(single.selection_speedup)} there); {text.speedup(single.overall)} on test prompts."
    ]
    return lines + [_router_line(router) for router in result.routers]


def _router_line(router: RouterResult) -> str:
    if router.ratio_to_single is None:
        return f"{_WHO[router.name]}: no figure, for some output was not lossless."
    right = "" if router.name == "own task" else f" {text.percent(router.accuracy)} of prompts go to their own task."
    return (
        f"{_WHO[router.name]}: {text.speedup(router.end_to_end_speedup)}, "
        f"{text.speedup(router.ratio_to_single)} as fast as the one draft.{right}"
    )


def router_verdict(result: TransferResult) -> str:
    """Whether a draft for each prompt beats one for all, in a sentence."""
    winners = [router.name for router in result.routers if router.wins]
    if winners:
        return f"A router wins: picking by {' and by '.join(winners)} is surely faster than the one draft."
    if all(router.ratio_to_single is None for router in result.routers):
        return "No verdict on routers: some output was not lossless."
    return "No router wins: picking a draft for each prompt is not surely faster than the one draft."
