"""``selfspec-tune search``: find a skip set and measure what it is worth, over all tasks or for each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune import arguments
from selfspec_tune.cli import exits, options, output
from selfspec_tune.cli.exits import RESUMABLE, at_edge, stop
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import Objective, SearchRequest

if TYPE_CHECKING:
    from selfspec_tune.search import SearchOutcome

NOT_OF_REQUEST = frozenset({"per_task", "plot", "dry_run", "json", "quiet", "debug"})


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


@at_edge(interrupted=RESUMABLE)
def search(
    model: options.ModelName = None,
    revision: options.Revision = None,
    prompts: options.PromptSource = None,
    num_prompts: options.NumPrompts = None,
    task: options.Tasks = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    template: options.TemplateName = None,
    out: options.StudyFolder = None,
    trials: options.Trials = None,
    timeout: options.Timeout = None,
    strategy: options.StrategyChoice = None,
    per_task: options.PerTask = False,
    seed: options.Seed = None,
    dtype: options.DtypeName = None,
    device: options.Device = None,
    runner: options.RunnerName = None,
    policy: options.PolicyName = None,
    max_draft_tokens: options.MaxDraftTokens = None,
    exit_threshold: options.ExitThreshold = None,
    draft_vocab: options.DraftVocabulary = None,
    ngram: options.Ngram = None,
    draft_precision: options.Precision = None,
    extra_memory: options.ExtraMemory = None,
    objective: options.ObjectiveChoice = None,
    start_from: options.StartFrom = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    plot: options.TransferPlot = None,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Find the layers a model may skip while it drafts for itself.

    Writes skip.json, bench.json and study.toml into DIR. After Ctrl-C the same command resumes.
    """
    given = {name: value for name, value in locals().items() if name not in NOT_OF_REQUEST}
    request = search_request(**given, folder="-tasks" if per_task else "")
    if per_task and request.draft.objective is Objective.STANDALONE:
        raise UsageError("--per-task compares drafts that share the model's cache; leave out --objective standalone.")
    if per_task:
        search_per_task(request, plot, is_plan=dry_run, json=json, quiet=quiet)
    elif plot is not None:
        raise UsageError(f"--plot {plot}: it draws what --per-task finds; add --per-task, or leave it out.")
    elif dry_run:
        _plan(request, json=json, quiet=quiet)
    else:
        _run(request, json=json, quiet=quiet)


def search_request(
    *,
    task: list[str] | None,
    draft_vocab: str | None,
    draft_precision: str | None,
    ngram: bool | None,
    extra_memory: str | None,
    objective: Objective | None = None,
    **others: Any,
) -> SearchRequest:
    """The search that the options of the command line ask for."""
    if objective is Objective.STANDALONE:
        lost = {"--ngram": ngram or None, "--extra-memory": extra_memory}
        for option in (name for name, value in lost.items() if value is not None):
            raise UsageError(
                f"{option} is for a draft in this program's engine; leave it out with --objective standalone."
            )
    return arguments.search_request(
        tasks=task,
        vocabulary=draft_vocab,
        precision=draft_precision,
        ngram=ngram,
        extra_memory=extra_memory,
        objective=objective,
        **others,
    )


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
