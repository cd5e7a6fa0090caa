"""What a search concludes: the file a user keeps, and how far prediction and measurement agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from selfspec_tune.draft import Draft
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.rounds import num_tokens
from selfspec_tune.intervals import Interval
from selfspec_tune.measure.arms import SELF_SPECULATIVE
from selfspec_tune.models import LoadedModel
from selfspec_tune.requests import Objective
from selfspec_tune.results import (
    BenchResult,
    DraftSettings,
    MethodResult,
    ModelInfo,
    PairedRun,
    Score,
    SkipConfig,
    SkipLayers,
)

# A larger gap between prediction and measurement means a noisy machine or an engine problem.
LARGEST_GAP = 0.10


def skip_config(
    loaded: LoadedModel, winner: Draft, bench: BenchResult, search: dict[str, Any], objective: Objective
) -> SkipConfig:
    """The winner with its score on the test split; ``search`` says how it was found, ``objective`` as what."""
    method = next(method for method in bench.methods if method.name == SELF_SPECULATIVE)
    score = Score(
        verdict="undecided" if bench.verdict == "withheld" else bench.verdict,
        end_to_end_speedup=method.end_to_end_speedup,
        decode_speedup=method.decode_speedup,
        decode_tokens_per_second=method.decode_tokens_per_second,
        of_memory_limit=method.of_memory_limit,
        acceptance_rate=method.acceptance_rate,
        mean_accepted_tokens=method.mean_accepted_tokens,
        split=bench.split,
        num_prompts=method.num_prompts,
        withheld_because=bench.withheld_because,
        degenerate_share=method.degenerate_share,
        num_too_short=method.num_too_short,
        without_degenerate=method.without_degenerate,
    )
    return _config(loaded, winner, score, {**bench.provenance, "search": search}, objective)


def provisional_config(
    loaded: LoadedModel, best: Draft, provenance: dict[str, Any], objective: Objective
) -> SkipConfig:
    """The best draft of an interrupted search: nothing was measured on held-out prompts, so no figure is given."""
    score = Score(verdict="undecided", split="calibration", num_prompts=0)
    return _config(loaded, best, score, {"interrupted": True, **provenance}, objective)


def _config(
    loaded: LoadedModel, draft: Draft, score: Score, provenance: dict[str, Any], objective: Objective
) -> SkipConfig:
    return SkipConfig(
        model=ModelInfo.model_validate(loaded.describe()),
        skip=SkipLayers.model_validate(draft.skip_set.to_dict()),
        draft=DraftSettings.model_validate(draft.to_dict()),
        objective=objective.value,
        score=score,
        provenance=provenance,
    )


def predicted_from_counts(runs: Sequence[PairedRun], draft: Draft, costs: CostModel) -> float | None:
    """Decode speedup that the cost model gives for the counts that really occurred; None without a round.

    Each run's steps cost what they cost in the middle of its own text.
    """
    plain = speculative = 0.0
    for run in runs:
        steps = costs.steps(draft, run.prompt_tokens + run.candidate.num_tokens / 2)
        plain += num_tokens(run.candidate.rounds) * steps.decode
        speculative += steps.seconds(run.candidate.rounds)
    return plain / speculative if speculative else None


def promise_kept(promised: Interval, obtained: Interval) -> str:
    """Whether the test gave what the selection prompts promised, as far as the prompts of both can tell."""
    text = f"end to end {obtained.value:.2f}× on the test prompts, {promised.value:.2f}× on the selection prompts"
    gap = obtained.value / promised.value - 1
    if _low_ratio(obtained, promised) <= 1.0 and _low_ratio(promised, obtained) <= 1.0:
        return f"{text}: they agree within their intervals"
    return (
        f"{text}: {gap:+.0%}, more than their intervals explain. The selection prompts are easier or harder, or chose "
        "the luckiest of several."
    )


def _low_ratio(one: Interval, other: Interval) -> float:
    """The lower bound of ``one / other``, both independent, on the logarithmic scale; 0 where nothing is known."""
    if one.low <= 0 or math.isinf(other.high):
        return 0.0
    margin = math.hypot(math.log(one.value / one.low), math.log(other.high / other.value))
    return one.value / other.value * math.exp(-margin)


def bounded(interval: Interval) -> dict[str, float | None]:
    """Plain JSON values; a missing upper bound is null."""
    high = None if math.isinf(interval.high) else interval.high
    return {"value": interval.value, "low": interval.low, "high": high}


def plain_drift(runs: Sequence[PairedRun], draft: Draft, costs: CostModel) -> float:
    """Time of the plain decoding in ``runs`` as a multiple of what the cost model says; 1 without a step."""
    measured = sum(run.baseline.decode_seconds for run in runs)
    predicted = 0.0
    for run in runs:
        steps = costs.steps(draft, run.prompt_tokens + run.baseline.num_tokens / 2)
        predicted += run.baseline.decode_steps * steps.decode
    return measured / predicted if predicted else 1.0


def why_apart(drift: float) -> str:
    """What a large gap between prediction and measurement comes from, by `plain_drift`."""
    if abs(drift - 1) > LARGEST_GAP:
        return (
            f"plain steps take {drift:.2f} times what they took when the steps were timed: the machine has another "
            "speed, and with it other ratios"
        )
    return (
        "plain steps take what they took when timed, so a draft's steps or a verification cost more in a run than alone"
    )


def agreement(method: MethodResult, predicted: float, drift: float) -> str:
    """Predicted against measured decode speedup in words; with `plain_drift`, what a large gap comes from."""
    if method.decode_speedup is None:
        return f"predicted {predicted:.2f}× decode from the counts; not lossless, so nothing to compare with"
    measured = method.decode_speedup.value
    gap = measured / predicted - 1
    text = f"decode {measured:.2f}× measured, {predicted:.2f}× predicted from its counts and the step times"
    if abs(gap) <= LARGEST_GAP:
        return text
    return (
        f"{text}: a gap of {gap:+.0%}; {why_apart(drift)}. Run again on a quiet machine; if the gap stays, report it."
    )
