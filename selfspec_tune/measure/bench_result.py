"""From the runs of a contest to a `BenchResult` with its verdict and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfspec_tune.intervals import FEWEST_TESTED, Interval, has_excess_ties, noise_warnings, verdict
from selfspec_tune.measure.arms import EMPTY, GENERATE, NULL, SELF_SPECULATIVE, Arm
from selfspec_tune.measure.workload import Workload
from selfspec_tune.provenance import load_average, num_cores
from selfspec_tune.results import BenchResult, MethodResult, ModelInfo, NullRun, PairedRun
from selfspec_tune.results.metrics import (
    end_to_end_times,
    memory_limit,
    summarise,
    summarise_baseline,
    unavailable_method,
)

_EXCESS_TIES = (
    "Numerical ties are more than twice as frequent as with nothing skipped, so verification alone does not explain "
    "them: the verdict is withheld. Run in `dtype` float32, where every token must be equal."
)

_SOUNDER = "Try the model's chat template (`template` chat), other prompts, or another model."


def bench_result(
    workload: Workload,
    arms: Sequence[Arm],
    runs: Sequence[PairedRun],
    *,
    split: str,
    in_sample: bool,
    provenance: dict[str, Any],
    unavailable: Mapping[str, str] | None = None,
) -> BenchResult:
    """Figures of every arm; the verdict is on the first self-speculative one, by the answers that do not degenerate.

    ``unavailable``: why an arm could not run, by its id.
    """
    missing = unavailable or {}
    seed = workload.options.seed
    of_arm = {arm.id: [run for run in runs if run.method == arm.id] for arm in arms}
    plain = _one_arm(of_arm)
    methods = [summarise_baseline(plain, description="one token per full pass", seed=seed)]
    for arm in arms:
        skip, about = arm.draft.skip_set if arm.draft else None, arm.description
        if arm.id in missing:
            methods.append(unavailable_method(arm.id, arm.name, missing[arm.id], skip=skip, description=about))
        elif arm.id != NULL and of_arm[arm.id]:
            methods.append(summarise(arm.id, arm.name, of_arm[arm.id], skip=skip, description=about, seed=seed))
    main = next((method for method in methods if method.name == SELF_SPECULATIVE), None)
    null = _null_run(of_arm.get(NULL, []), seed)
    ratio = baseline_vs_generate(of_arm.get(GENERATE, []))
    empty = next((method for method in methods if method.id == EMPTY), None)
    withheld = _reasons_to_withhold(main, empty, ratio)
    generate = next((method for method in methods if method.id == GENERATE), None)
    if generate is not None and generate.lossless.mismatches:
        withheld.append(
            f"{generate.lossless.mismatches} of {generate.num_runs} answers of our baseline are not those of "
            "model.generate, by more than a numerical tie: this runner computes another model. Use `runner` "
            "reference, and report it."
        )
        ratio = None
    if GENERATE in missing:
        withheld.append(f"model.generate could not run, so our baseline is unchecked: {missing[GENERATE]}")
    return BenchResult(
        model=ModelInfo.model_validate(workload.loaded.describe()),
        verdict="withheld" if withheld else verdict(_sound_speedup(main)),
        withheld_because=withheld,
        methods=methods,
        a_a=null,
        baseline_vs_generate=ratio,
        memory_limit=memory_limit(plain),
        warnings=withheld + _degenerate(main) + _noise(main, null, runs, _load(provenance)),
        in_sample=in_sample,
        split=split,
        provenance=provenance,
        runs=list(runs),
    )


def _has_excess_ties(main: MethodResult | None, empty: MethodResult | None) -> bool:
    if main is None or empty is None:
        return False
    ties, reference = main.lossless.numerical_ties, empty.lossless.numerical_ties
    return has_excess_ties(ties, main.num_runs, reference, empty.num_runs)


def baseline_vs_generate(runs: Sequence[PairedRun]) -> float | None:
    """Total time of ``model.generate`` over our baseline's, per token; above 1 ours is faster."""
    if not runs:
        return None
    times = end_to_end_times(runs)
    return sum(times.candidate) / sum(times.baseline)


def _one_arm(of_arm: dict[str, list[PairedRun]]) -> list[PairedRun]:
    """The runs of the arm that saw most items: each block's baseline once."""
    return max(of_arm.values(), key=len)


def _null_run(runs: Sequence[PairedRun], seed: int) -> NullRun | None:
    if not runs:
        return None
    summary = summarise(NULL, NULL, runs, seed=seed)
    if summary.end_to_end_speedup is None or summary.decode_speedup is None:
        return None
    return NullRun(
        end_to_end=summary.end_to_end_speedup, decode=summary.decode_speedup, num_prompts=summary.num_prompts
    )


def _sound_speedup(main: MethodResult | None) -> Interval:
    speedup = main.sound_speedup if main else None
    assert speedup is not None, "a reason to withhold was missed"
    return speedup


def _reasons_to_withhold(main: MethodResult | None, empty: MethodResult | None, ratio: float | None) -> list[str]:
    """Why no verdict may be given; empty where one may."""
    if main is None:
        return ["No skip set was measured."]
    reasons = []
    if main.lossless.mismatches:
        reasons.append(
            f"{main.lossless.mismatches} of {main.num_runs} runs differ from the baseline by more than a numerical "
            "tie: the output is not lossless, so no speedup is stated. Run in `dtype` float32 to tell why."
        )
    elif main.sound_speedup is None:
        reasons.append(
            f"All {main.num_runs} answers degenerate: they say the same token or phrase over and over, which every "
            f"draft guesses. That says nothing of other text. {_SOUNDER}"
        )
    if _has_excess_ties(main, empty):
        reasons.append(_EXCESS_TIES)
    if ratio is not None and ratio < 1.0:
        reasons.append(
            f"Our baseline took {1 / ratio:.2f} times as long as model.generate, so a speedup over it would flatter. "
            "Run again on a quiet machine; if it stays, use `runner` fast or report a bug."
        )
    return reasons


def _degenerate(main: MethodResult | None) -> list[str]:
    """A warning where some answers degenerate but not all."""
    if main is None or not main.has_degenerate or main.sound_speedup is None or main.end_to_end_speedup is None:
        return []
    assert main.without_degenerate is not None
    number = main.without_degenerate.num_prompts
    few = f", on {number} prompts, fewer than the {FEWEST_TESTED} that it needs" if number < FEWEST_TESTED else ""
    return [
        f"{main.degenerate_share:.0%} of the answers degenerate: they say the same token or phrase over and over. That "
        f"flatters every draft, and lookup most. End to end {main.sound_speedup} without them, "
        f"{main.end_to_end_speedup} with them; the verdict goes by those without{few}. {_SOUNDER}"
    ]


def _load(provenance: Mapping[str, Any]) -> float | None:
    """The highest load average of the sessions that measured; without a log, this moment's."""
    if "sessions" not in provenance:
        return load_average()
    return max((session["load_average"] or 0.0 for session in provenance["sessions"]), default=None)


def _noise(main: MethodResult | None, null: NullRun | None, runs: Sequence[PairedRun], load: float | None) -> list[str]:
    return noise_warnings(
        a_a=null.end_to_end if null else None,
        seconds=_repeats(runs),
        load_average=load,
        cores=num_cores(),
        num_prompts=main.num_prompts if main else None,
    )


def _repeats(runs: Sequence[PairedRun]) -> dict[str, list[float]]:
    """Baseline decode seconds per token of each prompt over rounds, where there are several."""
    seconds: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.baseline.decode_steps:
            by_round = seconds.setdefault(run.prompt_id, {})
            by_round[run.round] = run.baseline.decode_seconds / run.baseline.decode_steps
    return {prompt: list(times.values()) for prompt, times in seconds.items() if len(times) > 1}
