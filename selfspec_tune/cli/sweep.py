"""``selfspec-tune bench --sweep``: run it, print it, write its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selfspec_tune.cli import output
from selfspec_tune.requests import SweepRequest

if TYPE_CHECKING:
    from selfspec_tune.results import SweepResult


@dataclass(frozen=True, slots=True)
class SweepFiles:
    """Where a sweep's result is written, as far as it is asked for."""

    csv: Path | None
    parquet: Path | None
    plot: Path | None
    out: Path | None


def run_sweep(request: SweepRequest, files: SweepFiles, *, json: bool, quiet: bool) -> None:
    """Measure, print, write. What would fail only in the end is refused first."""
    if files.plot is not None:
        from selfspec_tune.report.plot import check_plot

        check_plot(files.plot)
    from selfspec_tune.bench import run_sweep as run

    with output.progress(quiet=quiet) as reporter:
        result = run(request, reporter)
    print_result(result, json=json)  # first, so that a full disk loses no measurement
    _write(result, files)


def print_result(result: SweepResult, *, json: bool) -> None:
    """One JSON object, or table and plot for people."""
    from selfspec_tune.report.sweep import print_sweep

    if json:
        output.print_json(result.to_dict())
    else:
        print_sweep(output.result_console(), result)


def _write(result: SweepResult, files: SweepFiles) -> None:
    from selfspec_tune.export import write_csv, write_parquet

    if files.out is not None:
        result.save(files.out)
    if files.csv is not None:
        write_csv(result, files.csv)
    if files.parquet is not None:
        write_parquet(result, files.parquet)
    if files.plot is not None:
        from selfspec_tune.report.plot import write_plot

        write_plot(result, files.plot)
