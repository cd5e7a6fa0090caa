"""One bench at several values of one thing (``sweep``), interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from selfspec_tune.bench.run import BenchSetup, open_bench
from selfspec_tune.draft import Draft
from selfspec_tune.errors import PromptError, UsageError
from selfspec_tune.measure.arms import Arm, reference_arms, self_speculative_arm
from selfspec_tune.measure.bench_result import bench_result
from selfspec_tune.measure.contest import Contest, run_together
from selfspec_tune.measure.lossless import make_check
from selfspec_tune.measure.plain_limit import PlainLimit
from selfspec_tune.measure.run_log import BenchLog, measurement, opened
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.prompts import Prompt, Template, draw_prompts, load_prompts, may_fit, render
from selfspec_tune.prompts.lengthen import HOW_LENGTHENED, documents_for, lengthened
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import SWEEP_VALUES, BenchRequest, SweepKind, SweepRequest
from selfspec_tune.results import BenchResult, SweepPoint, SweepResult

# Of the prompts, as many must be short enough for a context length that was not asked for.
_LEAST_FITTING = 0.75
DESCRIPTIONS = {
    SweepKind.CONTEXT: HOW_LENGTHENED,
    SweepKind.TEMPERATURE: (
        "The same prompts, sampled at each temperature; 0 is greedy. Above 0 the arms' answers differ and are compared "
        "by time per token: that they follow the same distribution is what speculative sampling guarantees, not what "
        "a run can show."
    ),
    SweepKind.MAX_DRAFT: "The same prompts and skip sets; only the longest draft of their policy changes.",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a sweep: the workload and items there, and the draft that a skip set has there."""

    value: float
    workload: Workload
    items: Sequence[WorkItem]
    vary: Callable[[Draft], Draft] = lambda draft: draft


def sweep_points(request: SweepRequest, setting: BenchSetup, reporter: Reporter) -> list[Point]:
    """The request's points, or those of the usual values that model, prompts and answers allow.

    Raises `UsageError` or `PromptError` where an asked value is not possible, or fewer than two are left.
    """
    make = {
        SweepKind.CONTEXT: _context_points,
        SweepKind.TEMPERATURE: _temperature_points,
        SweepKind.MAX_DRAFT: _draft_points,
    }[request.kind]
    points = make(request.values, setting, reporter)
    if len(points) < 2:
        usual = ", ".join(f"{value:g}" for value in SWEEP_VALUES[request.kind])
        raise UsageError(
            f"`sweep` {request.kind}: fewer than two of its usual values ({usual}) are possible with this model, these "
            "prompts and `max_new_tokens`. Give `sweep_values`."
        )
    return points


def _temperature_points(asked: Sequence[float] | None, setting: BenchSetup, _: Reporter) -> list[Point]:
    workload = setting.workload
    points = []
    for value in asked or SWEEP_VALUES[SweepKind.TEMPERATURE]:
        there = replace(workload, options=replace(workload.options, temperature=value))
        points.append(Point(value, there, there.items(setting.prompts)))
    return points


def _draft_points(asked: Sequence[float] | None, setting: BenchSetup, _: Reporter) -> list[Point]:
    workload = setting.workload
    most = workload.options.max_new_tokens - 2  # the first token comes from the prefill, the last from a verification
    too_long = [value for value in asked or () if value > most]
    if too_long:
        raise UsageError(
            f"`sweep_values` {too_long[0]:g}: of {workload.options.max_new_tokens} new tokens at most {most} can be "
            "drafted at once. Give smaller values, or raise `max_new_tokens`."
        )
    values = asked or [value for value in SWEEP_VALUES[SweepKind.MAX_DRAFT] if value <= most]
    items = workload.items(setting.prompts)
    return [Point(value, workload, items, _longest_draft(int(value))) for value in values]


def _longest_draft(max_draft_tokens: int) -> Callable[[Draft], Draft]:
    return lambda draft: replace(draft, policy=replace(draft.policy, max_draft_tokens=max_draft_tokens))


def _context_points(asked: Sequence[float] | None, setting: BenchSetup, reporter: Reporter) -> list[Point]:
    workload = setting.workload
    room = workload.loaded.context_length - workload.options.max_new_tokens
    too_long = [value for value in asked or () if value > room]
    if too_long:
        raise UsageError(
            f"`sweep_values` {too_long[0]:g}: with {workload.options.max_new_tokens} new tokens that does not fit the "
            f"model's context of {workload.loaded.context_length}; expected at most {room}. Give smaller values, or "
            "lower `max_new_tokens`."
        )
    lengths = [len(render(p, workload.loaded.tokenizer, _template(workload))) for p in setting.prompts]
    values = [int(value) for value in asked or _usual_contexts(room, lengths)]
    if not values:
        return []
    prompts = [p for p, length in zip(setting.prompts, lengths, strict=True) if length <= min(values)]
    if not prompts:
        raise PromptError(
            f"`sweep_values` {min(values)}: every prompt is longer than that (the shortest has {min(lengths)} tokens). "
            "Raise the smallest value, or give other `prompts`."
        )
    if len(prompts) < len(lengths):
        reporter.notice(
            f"{len(lengths) - len(prompts)} of {len(lengths)} prompts have more than {min(values)} tokens; they are "
            "left out at every value"
        )
    return _lengthened_points(workload, prompts, values, reporter, is_asked=asked is not None)


def _usual_contexts(room: int, lengths: Sequence[int]) -> list[float]:
    """The usual values that the model can hold and that most prompts are not longer than."""

    def fits(value: float) -> bool:
        return sum(length <= value for length in lengths) >= _LEAST_FITTING * len(lengths)

    return [value for value in SWEEP_VALUES[SweepKind.CONTEXT] if value <= room and fits(value)]


def _lengthened_points(
    workload: Workload, prompts: Sequence[Prompt], values: Sequence[int], reporter: Reporter, *, is_asked: bool
) -> list[Point]:
    everything = load_prompts(workload.options.source)
    in_order = draw_prompts(everything, len(everything), seed=workload.options.seed)
    source = [prompt for prompt in in_order if may_fit(prompt, workload.loaded.context_length)]
    points = []
    for value in values:
        try:
            items = [_lengthened_item(workload, prompt, source, value) for prompt in prompts]
        except PromptError as error:
            if is_asked:
                raise
            reporter.notice(f"context {value} and longer left out: {error}")
            break
        points.append(Point(value, replace(workload, cost_context=value), items))
    return points


def _lengthened_item(workload: Workload, prompt: Prompt, source: Sequence[Prompt], num_tokens: int) -> WorkItem:
    documents = documents_for(prompt, source)
    tokens = lengthened(prompt, documents, num_tokens, workload.loaded.tokenizer, _template(workload))
    return WorkItem(prompt.id, prompt, tuple(tokens), workload.limits())


def _template(workload: Workload) -> Template:
    return Template(workload.options.template)


def run_sweep(request: SweepRequest, reporter: Reporter) -> SweepResult:
    """Measure the request's skip sets at every value; the blocks of all values turn over one another."""
    bench = request.bench
    setting = open_bench(bench, reporter)
    points = sweep_points(request, setting, reporter)
    setting = replace(setting, prompts=[item.prompt for item in points[0].items])
    items = {f"{point.value:g}": point.items for point in points}
    defined = measurement(setting.workload, items, bench, sweep=request.kind.value)
    with opened(bench.log, defined, reporter, fresh=bench.fresh) as log:
        limit = PlainLimit(setting.workload.loaded, setting.workload.runner, reporter.notice)
        contests = [_contest(point, setting, bench, log, limit) for point in points]
        if log:
            log.begin(contests, setting.provenance(contests[0].check), reporter)
        detail = f"{request.kind} at {len(points)} values, {len(points[0].items)} prompts"
        reporter.stage("sweep", f"{detail}, {len(contests[0].arms) + 1} methods")
        runs = run_together(contests, reporter)
    all_runs = [run for of_point in runs for run in of_point]
    provenance = log.provenance(all_runs) if log else setting.provenance(contests[0].check)
    results = [
        bench_result(
            contest.workload,
            contest.arms,
            of_point,
            split=setting.split,
            in_sample=setting.in_sample,
            provenance=provenance,
        )
        for contest, of_point in zip(contests, runs, strict=True)
    ]
    return SweepResult(
        model=results[0].model,
        sweep=request.kind.value,
        description=DESCRIPTIONS[request.kind],
        points=[_sweep_point(contest, result) for contest, result in zip(contests, results, strict=True)],
        warnings=_warnings(points, results),
        in_sample=setting.in_sample,
        split=setting.split,
        provenance=provenance,
        runs=all_runs,
    )


def _contest(
    point: Point, setting: BenchSetup, bench: BenchRequest, log: BenchLog | None, plain_limit: PlainLimit
) -> Contest:
    """One point's bench: every skip set, the A-A run, model.generate and, where ties occur, the empty set."""
    arms = [_arm(point, contender) for contender in setting.contenders]
    floor = log.numeric_floor(f"{point.value:g}") if log else None
    return Contest(
        point.workload,
        make_check(point.workload, point.items, floor),
        point.items,
        arms,
        reference_arms(point.workload, arms[0], uniform_and_random=False),
        num_reference_items=min(bench.reference_prompts, len(point.items)),
        rounds=bench.rounds,
        log=log.path if log else None,
        point=point.value,
        session=log.session if log else None,
        plain_limit=plain_limit,
    )


def _arm(point: Point, contender: Arm) -> Arm:
    """The contender as it drafts at this point, under the same id and name at all of them."""
    assert contender.draft is not None
    arm = self_speculative_arm(point.workload, point.vary(contender.draft), contender.id, contender.name)
    return replace(arm, description=contender.description)


def _sweep_point(contest: Contest, result: BenchResult) -> SweepPoint:
    assert contest.point is not None
    return SweepPoint(
        value=contest.point,
        prompt_tokens=mean(len(item.tokens) for item in contest.items),
        verdict=result.verdict,
        withheld_because=result.withheld_because,
        methods=result.methods,
        a_a=result.a_a,
        baseline_vs_generate=result.baseline_vs_generate,
        memory_limit=result.memory_limit,
        numeric_floor=contest.check.floor,
    )


def _warnings(points: Sequence[Point], results: Sequence[BenchResult]) -> list[str]:
    """Every point's warnings, each once, with the values that it is about where it is not about all."""
    values: dict[str, list[str]] = {}
    for point, result in zip(points, results, strict=True):
        for warning in result.warnings:
            values.setdefault(warning, []).append(f"{point.value:g}")
    return [
        warning if len(concerned) == len(points) else f"At {', '.join(concerned)}: {warning}"
        for warning, concerned in values.items()
    ]
