"""``selfspec-tune compare``: several ways to search under equal time, and what each found, side by side."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from selfspec_tune.arguments import parse_duration
from selfspec_tune.cli import options, output
from selfspec_tune.cli.exits import RESUMABLE, at_edge
from selfspec_tune.cli.search import NOT_OF_REQUEST, search, search_request
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import CompareRequest, StrategyName

_DEFAULT = "staged,tpe,self-sd"


def compare(
    strategies: Annotated[
        str,
        typer.Option(metavar="A,B,…", help=f"Ways to search: {', '.join(StrategyName)}.", rich_help_panel="Budget"),
    ] = _DEFAULT,
    early: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Measure too what staged had found after this time, such as 4.5m.",
            rich_help_panel="Budget",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw best so far against time, .svg or .png.", rich_help_panel="Files"),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    **searching: Any,
) -> None:
    """Run several ways to search, each with the same time, and measure their winners on the same unread prompts.

    Each has a folder of its own in DIR. After Ctrl-C the same command resumes.
    """
    request = CompareRequest(
        search_request(**searching, folder="-compare"),
        tuple(_strategy(name.strip()) for name in strategies.split(",")),
        () if early is None else (parse_duration(early),),
    )
    if plot is not None:
        from selfspec_tune.report.plot import check_plot

        check_plot(plot)
        output.prepare_outputs(plot)
    from selfspec_tune.bench import run_comparison
    from selfspec_tune.report.comparison import print_comparison

    with output.progress(quiet=quiet) as reporter:
        comparison = run_comparison(request, reporter)
    if json:
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


def _with_options_of_search() -> Any:
    """The command with the options of ``search`` in place of ``**searching``, but for those of its own."""
    own = dict(inspect.signature(compare).parameters)
    own.pop("searching")
    theirs = inspect.signature(search).parameters
    left_out = {*own, *NOT_OF_REQUEST, "strategy"}
    hints = {**get_type_hints(search, include_extras=True), **get_type_hints(compare, include_extras=True)}
    merged = [*(p for name, p in theirs.items() if name not in left_out), *own.values()]
    merged = [parameter.replace(annotation=hints[parameter.name]) for parameter in merged]

    def command(**asked: Any) -> None:
        compare(**asked)

    command.__name__, command.__doc__ = compare.__name__, compare.__doc__
    command.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in merged}
    return at_edge(interrupted=RESUMABLE)(command)


command = _with_options_of_search()
