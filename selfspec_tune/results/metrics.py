"""From raw paired runs to figures: pure functions.

Both arms of a pair normally make the same tokens. After a numerical tie, or when sampling,
they may make different numbers of them; the candidate's decoding is then scaled to the
baseline's number of decode steps, so that what is compared is time per token. A method with
a single lossy run gets no speedup at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from selfspec_tune.draft import Round, SkipSet
from selfspec_tune.draft.rounds import acceptance_rate, mean_accepted_tokens, num_drafted
from selfspec_tune.intervals import Interval, cluster_bootstrap, cluster_totals, geometric_mean_ratio
from selfspec_tune.results.bench import LosslessCount, MethodResult, PositionCounts, SkipLayers, TaskResult
from selfspec_tune.results.memory_limit import MemoryLimit, Spread
from selfspec_tune.results.runs import ArmRun, PairedRun

AUTOREGRESSIVE = "autoregressive"
_EXACTLY_ONE = Interval(1.0, 1.0, 1.0)


class PairedTimes(NamedTuple):
    """Seconds of each pair, the candidate's scaled to the baseline's tokens; prompt by pair."""

    baseline: list[float]
    candidate: list[float]
    prompts: list[str]


def end_to_end_times(runs: Sequence[PairedRun]) -> PairedTimes:
    """Prefill and decoding of every pair."""
    return PairedTimes(
        [run.baseline.total_seconds for run in runs],
        [run.candidate.prefill_seconds + _remaining_seconds(run) for run in runs],
        [run.prompt_hash for run in runs],
    )


def decode_times(runs: Sequence[PairedRun]) -> PairedTimes:
    """Decoding alone; pairs of which an arm ended with the prefill's token have none."""
    decoded = [run for run in runs if run.baseline.decode_steps and run.candidate.decode_steps]
    return PairedTimes(
        [run.baseline.decode_seconds for run in decoded],
        [_scaled_decode_seconds(run) for run in decoded],
        [run.prompt_hash for run in decoded],
    )


def advantage(
    runs: Sequence[PairedRun],
    others: Sequence[PairedRun],
    times_of: Callable[[Sequence[PairedRun]], PairedTimes] = end_to_end_times,
    *,
    seed: int = 0,
) -> Interval | None:
    """How many times as fast as ``others`` are ``runs`` of the same prompts; None where they have none in common.

    Each is taken against the baseline of its own block, which a resumed measurement may have run twice: a machine that
    has become faster since favours neither.
    """
    other = {(run.prompt_hash, run.round): run for run in others}
    seconds, their_seconds, prompts = [], [], []
    for run in runs:
        if (run.prompt_hash, run.round) in other:
            own, rival = times_of([run]), times_of([other[run.prompt_hash, run.round]])
            if own.prompts and rival.prompts:
                seconds += own.candidate
                their_seconds += [own.baseline[0] * rival.candidate[0] / rival.baseline[0]]
                prompts += own.prompts
    return cluster_bootstrap(their_seconds, seconds, prompts, seed=seed) if prompts else None


def count_lossless(runs: Sequence[PairedRun]) -> LosslessCount:
    """How the runs' outputs compare with the baseline's."""
    verdicts = [run.lossless for run in runs]
    return LosslessCount(
        identical=verdicts.count("identical"),
        numerical_ties=verdicts.count("numerical_tie"),
        mismatches=verdicts.count("mismatch"),
        sampled=verdicts.count("sampled"),
    )


def rounds_of(runs: Sequence[PairedRun]) -> list[Round]:
    """All rounds of the candidate."""
    return [one for run in runs for one in run.candidate.rounds]


def by_position(rounds: Sequence[Round]) -> PositionCounts | None:
    """What became of drafts token by token; None where nothing was drafted."""
    positions = range(max((one.num_drafted for one in rounds), default=0))
    if not positions:
        return None
    return PositionCounts(
        drafted=[sum(one.num_drafted > place for one in rounds) for place in positions],
        reached=[sum(one.num_drafted > place and one.num_accepted >= place for one in rounds) for place in positions],
        accepted=[sum(one.num_accepted > place for one in rounds) for place in positions],
    )


def degenerate_share(runs: Sequence[PairedRun]) -> float | None:
    """The share of runs whose answers degenerate, None where nobody looked, or all are too short to tell."""
    known = [run.degenerate for run in runs if run.degenerate is not None]
    return sum(known) / (len(known) + num_too_short(runs)) if known else None


def num_too_short(runs: Sequence[PairedRun]) -> int:
    """How many runs have answers too short to tell whether they degenerate."""
    return sum(run.too_short for run in runs)


def draft_cost_fraction(runs: Sequence[PairedRun]) -> float | None:
    """Seconds of a drafted token over the baseline's seconds of a decoded token."""
    return _cost_fraction(sum(run.candidate.draft_seconds for run in runs), num_drafted(rounds_of(runs)), runs)


def verify_cost_fraction(runs: Sequence[PairedRun]) -> float | None:
    """Seconds of a verification over the baseline's seconds of a decoded token."""
    return _cost_fraction(sum(run.candidate.verify_seconds for run in runs), len(rounds_of(runs)), runs)


def of_memory_limit(runs: Sequence[PairedRun], arms: Sequence[ArmRun], *, seed: int = 0) -> Interval | None:
    """Decode tokens/s of each run's arm over what its memory allowed plain bfloat16 decoding; None where not known."""
    limits, seconds, prompts = [], [], []
    for run, arm in zip(runs, arms, strict=True):
        if run.limit_seconds is not None and arm.decode_steps:
            limits.append(arm.decode_steps * run.limit_seconds)
            seconds.append(arm.decode_seconds)
            prompts.append(run.prompt_hash)
    return cluster_bootstrap(limits, seconds, prompts, seed=seed) if prompts else None


def with_decode_rates(methods: Sequence[MethodResult], runs: Sequence[PairedRun]) -> list[MethodResult]:
    """``methods``; those of older files, which state no decode tokens/s, with what their ``runs`` tell."""
    arms: dict[str, list[ArmRun]] = {}
    for run in runs:
        arms.setdefault(run.method, []).append(run.candidate)
    most = max(arms, key=lambda method: len(arms[method]), default=None)
    arms[AUTOREGRESSIVE] = [run.baseline for run in runs if run.method == most]
    return [
        method
        if method.decode_tokens_per_second is not None
        else method.model_copy(update={"decode_tokens_per_second": decode_tokens_per_second(arms.get(method.id, []))})
        for method in methods
    ]


def memory_limit(runs: Sequence[PairedRun]) -> MemoryLimit | None:
    """What the memory allowed plain bfloat16 decoding of the baseline's tokens; None where no run tells."""
    known = [(run, run.limit_seconds) for run in runs if run.limit_seconds and run.baseline.decode_steps]
    if not known:
        return None
    steps = [run.baseline.decode_steps for run, _ in known]
    read = [(run.plain_bytes or 0.0) * run.baseline.decode_steps for run, _ in known]
    return MemoryLimit(
        tokens_per_second=sum(steps) / sum(run.baseline.decode_steps * seconds for run, seconds in known),
        bytes_per_token=sum(read) / sum(steps),
        bytes_per_second=Spread.of([run.memory_bytes_per_second or 0.0 for run, _ in known]),
    )


def summarise(
    method_id: str,
    name: str,
    runs: Sequence[PairedRun],
    *,
    skip: SkipSet | None = None,
    description: str = "",
    seed: int = 0,
) -> MethodResult:
    """One method's figures from its paired runs, whole and by task.

    ``seed`` is of the bootstrap. Raises ValueError if there are no runs.
    """
    lossless = count_lossless(runs)
    is_lossy = lossless.mismatches > 0
    arms = [run.candidate for run in runs]
    return MethodResult(
        name=name,
        id=method_id,
        description=description,
        skip=SkipLayers.model_validate(skip.to_dict()) if skip is not None else None,
        num_prompts=_num_prompts(runs),
        num_runs=len(runs),
        tokens_per_second=_tokens_per_second(arms),
        decode_tokens_per_second=decode_tokens_per_second(arms),
        of_memory_limit=None if is_lossy else of_memory_limit(runs, arms, seed=seed),
        decode_speedup=None if is_lossy else _speedup(decode_times(runs), seed),
        end_to_end_speedup=None if is_lossy else _speedup(end_to_end_times(runs), seed),
        geometric_mean_speedup=None if is_lossy else _geometric_mean(end_to_end_times(runs)),
        acceptance_rate=acceptance_rate(rounds_of(runs)),
        mean_accepted_tokens=mean_accepted_tokens(rounds_of(runs)),
        by_position=by_position(rounds_of(runs)),
        draft_cost_fraction=draft_cost_fraction(runs),
        verify_cost_fraction=verify_cost_fraction(runs),
        lossless=lossless,
        per_task={
            task: _summarise_task(of_task, is_lossy=is_lossy, seed=seed) for task, of_task in _by_task(runs).items()
        },
        degenerate_share=degenerate_share(runs),
        num_too_short=num_too_short(runs),
        without_degenerate=_without_degenerate(runs, is_lossy=is_lossy, seed=seed),
    )


def summarise_baseline(runs: Sequence[PairedRun], *, description: str = "", seed: int = 0) -> MethodResult:
    """The autoregressive baseline's own row, from the baseline arms of any methods' runs.

    Its speedup is 1 by definition. Raises ValueError if there are no runs.
    """
    arms = [run.baseline for run in runs]
    return MethodResult(
        name=AUTOREGRESSIVE,
        id=AUTOREGRESSIVE,
        description=description,
        num_prompts=_num_prompts(runs),
        num_runs=len(runs),
        tokens_per_second=_tokens_per_second(arms),
        decode_tokens_per_second=decode_tokens_per_second(arms),
        of_memory_limit=of_memory_limit(runs, arms, seed=seed),
        decode_speedup=_EXACTLY_ONE,
        end_to_end_speedup=_EXACTLY_ONE,
        geometric_mean_speedup=1.0,
        lossless=LosslessCount(identical=len(runs)),
        per_task={
            task: TaskResult(
                num_prompts=_num_prompts(of_task),
                decode_speedup=_EXACTLY_ONE,
                end_to_end_speedup=_EXACTLY_ONE,
            )
            for task, of_task in _by_task(runs).items()
        },
    )


def unavailable_method(
    method_id: str, name: str, reason: str, *, skip: SkipSet | None = None, description: str = ""
) -> MethodResult:
    """The row of a method that could not run on this model: why, and no figures."""
    return MethodResult(
        name=name,
        id=method_id,
        description=description,
        skip=SkipLayers.model_validate(skip.to_dict()) if skip is not None else None,
        num_prompts=0,
        num_runs=0,
        tokens_per_second=None,
        lossless=LosslessCount(),
        unavailable=reason,
    )


def _scaled_decode_seconds(run: PairedRun) -> float:
    """The candidate's decoding of as many tokens as the baseline decoded."""
    return _decode_seconds(run.candidate, run.baseline.decode_steps)


def _remaining_seconds(run: PairedRun) -> float:
    """The candidate's decoding of what its prefill leaves of the baseline's tokens."""
    return _decode_seconds(run.candidate, max(run.baseline.num_tokens - run.candidate.first_tokens, 0))


def _decode_seconds(arm: ArmRun, steps: int) -> float:
    return arm.decode_seconds * (steps / arm.decode_steps if arm.decode_steps else 1.0)


def _speedup(times: PairedTimes, seed: int) -> Interval | None:
    if not times.prompts:
        return None
    return cluster_bootstrap(times.baseline, times.candidate, times.prompts, seed=seed)


def _geometric_mean(times: PairedTimes) -> float:
    """Of the prompts' ratios, each from the prompt's total times."""
    baseline = cluster_totals(times.baseline, times.prompts)
    candidate = cluster_totals(times.candidate, times.prompts)
    return float(geometric_mean_ratio(baseline, candidate))


def _cost_fraction(seconds: float, count: int, runs: Sequence[PairedRun]) -> float | None:
    steps = sum(run.baseline.decode_steps for run in runs)
    decode_seconds = sum(run.baseline.decode_seconds for run in runs)
    if not count or not steps or decode_seconds <= 0 or seconds <= 0:  # none: it was not timed apart
        return None
    return (seconds / count) / (decode_seconds / steps)


def _tokens_per_second(arms: Sequence[ArmRun]) -> float:
    if not arms:
        raise ValueError("A method without a single run has no figures.")
    return sum(arm.num_tokens for arm in arms) / sum(arm.total_seconds for arm in arms)


def decode_tokens_per_second(arms: Sequence[ArmRun]) -> float | None:
    """Tokens that decoding made over its seconds; None where every arm ended with its prefill."""
    steps, seconds = sum(arm.decode_steps for arm in arms), sum(arm.decode_seconds for arm in arms if arm.decode_steps)
    return steps / seconds if steps and seconds > 0 else None


def _num_prompts(runs: Sequence[PairedRun]) -> int:
    return len({run.prompt_hash for run in runs})


def _by_task(runs: Sequence[PairedRun]) -> dict[str, list[PairedRun]]:
    tasks: dict[str, list[PairedRun]] = {}
    for run in runs:
        tasks.setdefault(run.task, []).append(run)
    return dict(sorted(tasks.items()))


def _summarise_task(runs: Sequence[PairedRun], *, is_lossy: bool, seed: int) -> TaskResult:
    return TaskResult(
        num_prompts=_num_prompts(runs),
        decode_speedup=None if is_lossy else _speedup(decode_times(runs), seed),
        end_to_end_speedup=None if is_lossy else _speedup(end_to_end_times(runs), seed),
        acceptance_rate=acceptance_rate(rounds_of(runs)),
        degenerate_share=degenerate_share(runs),
    )


def _without_degenerate(runs: Sequence[PairedRun], *, is_lossy: bool, seed: int) -> TaskResult | None:
    sound = [run for run in runs if not run.degenerate]
    if not sound or len(sound) == len(runs):
        return None
    return _summarise_task(sound, is_lossy=is_lossy, seed=seed)
