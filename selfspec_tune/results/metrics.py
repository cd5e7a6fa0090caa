"""From raw paired runs to figures: pure functions.

Both arms of a pair normally make the same tokens. After a numerical tie, or when sampling,
they may make different numbers of them; the candidate's decoding is then scaled to the
baseline's number of decode steps, so that what is compared is time per token. A method with
a single lossy run gets no speedup at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from selfspec_tune.draft import Round, SkipSet
from selfspec_tune.draft.rounds import acceptance_rate, mean_accepted_tokens, num_drafted
from selfspec_tune.intervals import Interval, cluster_bootstrap, cluster_totals, geometric_mean_ratio
from selfspec_tune.results.bench import BenchResult, LosslessCount, MethodResult, SkipLayers, SweepResult, TaskResult
from selfspec_tune.results.runs import ArmRun, PairedRun

if TYPE_CHECKING:
    import pandas as pd

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
    return MethodResult(
        name=name,
        id=method_id,
        description=description,
        skip=SkipLayers.model_validate(skip.to_dict()) if skip is not None else None,
        num_prompts=_num_prompts(runs),
        num_runs=len(runs),
        tokens_per_second=_tokens_per_second([run.candidate for run in runs]),
        decode_speedup=None if is_lossy else _speedup(decode_times(runs), seed),
        end_to_end_speedup=None if is_lossy else _speedup(end_to_end_times(runs), seed),
        geometric_mean_speedup=None if is_lossy else _geometric_mean(end_to_end_times(runs)),
        acceptance_rate=acceptance_rate(rounds_of(runs)),
        mean_accepted_tokens=mean_accepted_tokens(rounds_of(runs)),
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


def summarise_baseline(runs: Sequence[PairedRun], *, description: str = "") -> MethodResult:
    """The autoregressive baseline's own row, from the baseline arms of any methods' runs.

    Its speedup is 1 by definition. Raises ValueError if there are no runs.
    """
    return MethodResult(
        name=AUTOREGRESSIVE,
        id=AUTOREGRESSIVE,
        description=description,
        num_prompts=_num_prompts(runs),
        num_runs=len(runs),
        tokens_per_second=_tokens_per_second([run.baseline for run in runs]),
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


def spec_bench_rows(
    runs: Sequence[PairedRun], method: str, *, answers: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Answer rows for Spec-Bench's ``evaluation/speed.py``, one a prompt, one choice a round.

    ``method`` is a method's id, or ``autoregressive`` for the baseline file that speed.py
    reads beside it. Accepted lengths hold the bonus token, wall time the prefill. speed.py
    counts the baseline's tokens by tokenizing its ``turns`` again, so that file needs
    ``answers``: generated text by prompt id. It reads the first choice only.
    """
    is_baseline = method == AUTOREGRESSIVE
    chosen = runs if is_baseline else [run for run in runs if run.method == method]
    by_prompt: dict[str, dict[int, PairedRun]] = {}
    for run in chosen:
        by_prompt.setdefault(run.prompt_id, {}).setdefault(run.round, run)
    question_ids = _question_ids(list(by_prompt))
    stamp = time.time()
    rows = []
    for prompt_id, rounds in by_prompt.items():
        text = (answers or {}).get(prompt_id, "")
        ordered = [rounds[number] for number in sorted(rounds)]
        arms = [run.baseline if is_baseline else run.candidate for run in ordered]
        rows.append(
            {
                "question_id": question_ids[prompt_id],
                "category": ordered[0].task,
                "model_id": method,
                "choices": [_choice(index, arm, text) for index, arm in enumerate(arms)],
                "tstamp": stamp,
            }
        )
    return rows


def to_frame(result: BenchResult) -> pd.DataFrame:
    """A row a method, intervals spread over three columns, for ``csv`` and ``parquet``."""
    import pandas as pd

    return pd.DataFrame([_flat_row(method) for method in result.methods])


def sweep_to_frame(result: SweepResult) -> pd.DataFrame:
    """A row for each value and method: what was varied, the value, then as in `to_frame`."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"sweep": result.sweep, "value": point.value, "prompt_tokens": point.prompt_tokens, **_flat_row(method)}
            for point in result.points
            for method in point.methods
        ]
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


def _question_ids(prompt_ids: Sequence[str]) -> dict[str, int | str]:
    """Spec-Bench's question numbers where the ids end in distinct ones, else the ids themselves."""
    numbers = [prompt_id.rsplit("/", 1)[-1] for prompt_id in prompt_ids]
    if all(number.isdecimal() for number in numbers) and len(set(map(int, numbers))) == len(numbers):
        return {prompt_id: int(number) for prompt_id, number in zip(prompt_ids, numbers, strict=True)}
    return {prompt_id: prompt_id for prompt_id in prompt_ids}


def _choice(index: int, arm: ArmRun, text: str) -> dict[str, Any]:
    accepted = [one.num_tokens for one in arm.rounds] or [1] * arm.num_tokens
    return {
        "index": index,
        "turns": [text],
        "decoding_steps": [len(accepted)],
        "new_tokens": [arm.num_tokens],
        "wall_time": [arm.total_seconds],
        "accept_lengths": accepted,
    }


def _flat_row(method: MethodResult) -> dict[str, Any]:
    skip = method.skip
    row: dict[str, Any] = {"name": method.name, "id": method.id, "description": method.description}
    row["attention"] = ",".join(map(str, skip.attention)) if skip else None
    row["mlp"] = ",".join(map(str, skip.mlp)) if skip else None
    row |= {key: getattr(method, key) for key in ("num_prompts", "num_runs", "tokens_per_second")}
    for key in ("end_to_end_speedup", "decode_speedup"):
        interval: Interval | None = getattr(method, key)
        row[key] = interval.value if interval else None
        row[f"{key}_low"] = interval.low if interval else None
        row[f"{key}_high"] = interval.high if interval else None
    row |= {key: getattr(method, key) for key in _FRAME_RATES}
    row["unavailable"] = method.unavailable
    return row | {f"lossless_{key}": getattr(method.lossless, key) for key in LosslessCount.model_fields}


_FRAME_RATES = (
    "geometric_mean_speedup",
    "acceptance_rate",
    "mean_accepted_tokens",
    "draft_cost_fraction",
    "verify_cost_fraction",
    "degenerate_share",
    "num_too_short",
)
