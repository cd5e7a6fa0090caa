"""``selfspec-tune bench --sweep``: the same bench at several values of one thing, interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from selfspec_tune.bench.contest import Contest, run_together
from selfspec_tune.bench.log import BenchLog, opened
from selfspec_tune.bench.measurement import measurement
from selfspec_tune.bench.outcome import bench_result
from selfspec_tune.bench.points import Point, sweep_points
from selfspec_tune.bench.run import BenchSetting, make_check, open_bench, reference_arms
from selfspec_tune.measure.arms import Arm, self_speculative_arm
from selfspec_tune.prompts.lengthen import HOW_LENGTHENED
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import BenchRequest, SweepKind, SweepRequest
from selfspec_tune.results import BenchResult, SweepPoint, SweepResult

DESCRIPTIONS = {
    SweepKind.CONTEXT: HOW_LENGTHENED,
    SweepKind.TEMPERATURE: (
        "The same prompts, sampled at each temperature; 0 is greedy. Above 0 the arms' answers differ and are compared "
        "by time per token: that they follow the same distribution is what speculative sampling guarantees, not what "
        "a run can show."
    ),
    SweepKind.MAX_DRAFT: "The same prompts and skip sets; only the longest draft of their policy changes.",
}


def run_sweep(request: SweepRequest, reporter: Reporter) -> SweepResult:
    """Measure the request's skip sets at every value; the blocks of all values turn over one another."""
    bench = request.bench
    setting = open_bench(bench, reporter)
    points = sweep_points(request, setting, reporter)
    setting = replace(setting, prompts=[item.prompt for item in points[0].items])
    items = {f"{point.value:g}": point.items for point in points}
    defined = measurement(setting.workload, items, bench, sweep=request.kind.value)
    with opened(bench.log, defined, reporter, fresh=bench.fresh) as log:
        contests = [_contest(point, setting, bench, log) for point in points]
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


def _contest(point: Point, setting: BenchSetting, bench: BenchRequest, log: BenchLog | None) -> Contest:
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
