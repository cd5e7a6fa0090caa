"""``selfspec-tune search --per-task``: a draft for each task, and what each is worth on every other one."""

from __future__ import annotations

from pathlib import Path

from selfspec_tune.cli import output
from selfspec_tune.requests import SearchRequest


def search_per_task(request: SearchRequest, plot: Path | None, *, is_plan: bool, json: bool, quiet: bool) -> None:
    """Search and print what was found, or with ``is_plan`` what would be done."""
    if plot is not None:
        from selfspec_tune.report.plot import check_plot

        check_plot(plot)
        output.prepare_outputs(plot)
    if is_plan:
        _plan(request, json=json, quiet=quiet)
    else:
        _run(request, plot, json=json, quiet=quiet)


def _run(request: SearchRequest, plot: Path | None, *, json: bool, quiet: bool) -> None:
    from selfspec_tune.report.transfer import print_transfer
    from selfspec_tune.search import run_per_task

    with output.progress(quiet=quiet) as reporter:
        found = run_per_task(request, reporter)
    if json:
        output.print_json({**found.transfer.to_dict(), "bench": found.bench.to_dict(), "out": str(request.out)})
    else:
        console = output.result_console()
        print_transfer(console, found.transfer)
        console.print(f"\nWritten to {request.out}", markup=False)
    if plot is not None:
        from selfspec_tune.report.plot import write_transfer

        write_transfer(found.transfer, plot)


def _plan(request: SearchRequest, *, json: bool, quiet: bool) -> None:
    from selfspec_tune.report.plan import print_plan
    from selfspec_tune.search import plan_per_task

    with output.progress(quiet=quiet) as reporter:
        plans = plan_per_task(request, reporter)
    if json:
        output.print_json({name: plan.to_dict() for name, plan in plans.items()})
        return
    console = output.result_console()
    for name, plan in plans.items():
        console.print(f"\n{name}", markup=False)
        print_plan(console, plan)
