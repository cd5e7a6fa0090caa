"""``selfspec-tune compare``: several ways to search under equal time, and what each found, side by side."""

from __future__ import annotations

from selfspec_tune.arguments import parse_duration
from selfspec_tune.cli import output
from selfspec_tune.cli.command import Asked, command
from selfspec_tune.cli.exits import RESUMABLE
from selfspec_tune.cli.search import search_request
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import CompareRequest, StrategyName


@command("compare", interrupted=RESUMABLE)
def compare(asked: Asked) -> None:
    """Run several ways to search, each with the same time, and measure their winners on the same unread prompts.

    Each has a folder of its own in DIR. After Ctrl-C the same command resumes.
    """
    plot = asked["plot"]
    request = CompareRequest(
        search_request(asked, folder="-compare"),
        tuple(_strategy(name.strip()) for name in asked["strategies"].split(",")),
        () if asked["early"] is None else (parse_duration(asked["early"]),),
    )
    if plot is not None:
        from selfspec_tune.report.plot import check_plot

        check_plot(plot)
        output.prepare_outputs(plot)
    from selfspec_tune.bench import run_comparison
    from selfspec_tune.report.comparison import print_comparison

    with output.progress(quiet=asked["quiet"]) as reporter:
        comparison = run_comparison(request, reporter)
    if asked["json"]:
        output.print_json({**comparison.to_dict(), "bench": comparison.bench.to_dict()})
    else:
        print_comparison(output.result_console(), comparison)
    if plot is not None:
        from selfspec_tune.report.plot import write_curves

        write_curves(comparison.curves, comparison.bench.model, plot)


def _strategy(name: str) -> StrategyName:
    try:
        return StrategyName(name)
    except ValueError:
        raise UsageError(f"--strategies {name!r}: expected some of {', '.join(StrategyName)}.") from None
