"""A comparison of strategies as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfspec_tune.report import text
from selfspec_tune.report.tables import bench_title, degenerate_lines

if TYPE_CHECKING:
    from selfspec_tune.search.compare import Comparison


def print_comparison(console: Console, comparison: Comparison) -> None:
    """What each strategy found, when, and what it is worth on prompts that no search read."""
    console.print(Text(bench_title(comparison.bench), style="bold"))
    console.print(comparison_table(comparison))
    for line in degenerate_lines(comparison.bench):
        console.print(Text(line))


def comparison_table(comparison: Comparison) -> Table:
    """A row for each strategy, and for each earlier time of it."""
    methods = {method.id: method for method in comparison.bench.methods}
    table = Table(box=None, pad_edge=False)
    for header in ("strategy", "after", "decode", "end to end", "accept", "skipped"):
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
