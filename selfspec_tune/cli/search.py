"""``selfspec-tune search``: find a skip set and measure what it is worth, over all tasks or for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from selfspec_tune import arguments
from selfspec_tune.cli import exits, output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.cli.exits import RESUMABLE, stop
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import DraftOptions, ModelOptions, Objective, PromptOptions, SearchRequest

if TYPE_CHECKING:
    from selfspec_tune.search import SearchOutcome


def search_per_task(request: SearchRequest, plot: Path | None, *, is_plan: bool, json: bool, quiet: bool) -> None:
    """Search and print what was found, or with ``is_plan`` what would be done."""
    if plot is not None:
        from selfspec_tune.report.plot import check_plot

        check_plot(plot)
        output.prepare_outputs(plot)
    if is_plan:
        _plan_per_task(request, json=json, quiet=quiet)
    else:
        _run_per_task(request, plot, json=json, quiet=quiet)


def _run_per_task(request: SearchRequest, plot: Path | None, *, json: bool, quiet: bool) -> None:
    from selfspec_tune.bench import run_per_task
    from selfspec_tune.report.comparison import print_transfer

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


def _plan_per_task(request: SearchRequest, *, json: bool, quiet: bool) -> None:
    from selfspec_tune.bench import plan_per_task
    from selfspec_tune.report.search import print_plan

    with output.progress(quiet=quiet) as reporter:
        plans = plan_per_task(request, reporter)
    if json:
        output.print_json({name: plan.to_dict() for name, plan in plans.items()})
        return
    console = output.result_console()
    for name, plan in plans.items():
        console.print(f"\n{name}", markup=False)
        print_plan(console, plan)


@command("search", interrupted=RESUMABLE)
def search(asked: Asked) -> None:
    """Find the layers a model may skip while it drafts for itself.

    Writes skip.json, bench.json and study.toml into DIR. After Ctrl-C the same command resumes.
    """
    per_task, plot, shown = asked["per_task"], asked["plot"], {"json": asked["json"], "quiet": asked["quiet"]}
    request = search_request(asked, folder="-tasks" if per_task else "")
    if per_task and request.draft.objective is Objective.STANDALONE:
        raise UsageError("--per-task compares drafts that share the model's cache; leave out --objective standalone.")
    if per_task:
        search_per_task(request, plot, is_plan=asked["dry_run"], **shown)
    elif plot is not None:
        raise UsageError(f"--plot {plot}: it draws what --per-task finds; add --per-task, or leave it out.")
    elif asked["dry_run"]:
        _plan(request, **shown)
    else:
        _run(request, **shown)


def search_request(asked: Asked, folder: str) -> SearchRequest:
    """The search that the options of the command line ask for; ``folder``: what its default folder's name ends with."""
    return arguments.search_request(**asked.of(ModelOptions, PromptOptions, DraftOptions, SearchRequest), folder=folder)


def _run(request: SearchRequest, *, json: bool, quiet: bool) -> None:
    from selfspec_tune.search import run_search

    with output.progress(quiet=quiet) as reporter:
        outcome = run_search(request, reporter)
    if json:
        output.print_json(_outcome_dict(outcome))
    else:
        _print_outcome(outcome)
    if outcome.interrupted:
        stop(RESUMABLE, exits.exit_code())


def _plan(request: SearchRequest, *, json: bool, quiet: bool) -> None:
    from selfspec_tune.report.search import print_plan
    from selfspec_tune.search import plan_search

    with output.progress(quiet=quiet) as reporter:
        plan = plan_search(request, reporter)
    if json:
        output.print_json(plan.to_dict())
    else:
        print_plan(output.result_console(), plan)


def _outcome_dict(outcome: SearchOutcome) -> dict[str, object]:
    return {
        "skip_config": outcome.skip_config.to_dict(),
        "bench": outcome.bench.to_dict() if outcome.bench is not None else None,
        "out": str(outcome.out),
    }


def _print_outcome(outcome: SearchOutcome) -> None:
    from selfspec_tune.report.bench import print_bench
    from selfspec_tune.report.search import print_skip_config

    console = output.result_console()
    print_skip_config(console, outcome.skip_config)
    if outcome.bench is not None:
        console.print()
        print_bench(console, outcome.bench)
    console.print(f"\nWritten to {outcome.out}", markup=False)
