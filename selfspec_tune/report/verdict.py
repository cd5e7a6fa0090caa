"""The one sentence that matters: is it faster, by how much, on what, and how sure is that."""

from __future__ import annotations

from selfspec_tune.report import text
from selfspec_tune.results import BenchResult, MethodResult, Score
from selfspec_tune.statistics import FEWEST_TESTED
from selfspec_tune.terminal import visible_line

SELF_SPECULATIVE = "self-speculative"
STYLES = {
    "faster": "bold green",
    "not_faster": "bold yellow",
    "undecided": "bold yellow",
    "withheld": "bold red",
}


def headline_method(result: BenchResult) -> MethodResult | None:
    """The skip set that the bench is about: the first self-speculative method."""
    return next((method for method in result.methods if method.name == SELF_SPECULATIVE), None)


def bench_verdict(result: BenchResult) -> str:
    """The verdict of a bench as a sentence, with the reason where none is given."""
    method = headline_method(result)
    if method is None:
        return "No skip set was measured, so there is no verdict."
    if result.verdict == "withheld":
        return f"Verdict withheld: {_why_withheld(result, method)}"
    return _sentence(result.verdict, *_sound(method, result.split, in_sample=result.in_sample))


def score_verdict(score: Score) -> str:
    """The verdict of a skip.json as a sentence."""
    if score.withheld_because:
        return visible_line(f"Verdict withheld: {score.withheld_because[0]}")
    if score.num_prompts == 0:
        return "Interrupted before the test: no figure yet. The same search command goes on from here."
    return _sentence(score.verdict, *_sound(score, score.split))


def _sound(figures: MethodResult | Score, split: str, *, in_sample: bool = False) -> tuple[text.Bounds | None, str]:
    """The speedup that the verdict goes by, and on which prompts: those whose answers do not degenerate."""
    rest = figures.without_degenerate
    if rest is None:
        return figures.end_to_end_speedup, _prompts(figures.num_prompts, split, in_sample=in_sample)
    prompts = _prompts(rest.num_prompts, split, in_sample=in_sample)
    few = f", fewer than the {FEWEST_TESTED} that a verdict needs" if rest.num_prompts < FEWEST_TESTED else ""
    return rest.end_to_end_speedup, f"{prompts} whose answers do not degenerate{few}"


def _sentence(verdict: str, speedup: text.Bounds | None, prompts: str) -> str:
    if speedup is None:
        return f"{verdict.replace('_', ' ').capitalize()}, without an end-to-end speedup, {prompts}."
    span = text.bounds(speedup) or text.times(speedup.value)
    measured = f"{text.times(speedup.value)} end to end (95 % interval {span}) {prompts}"
    if verdict == "faster":
        return f"{measured}."
    if verdict == "not_faster":
        return f"Nothing beats 1.0×: the best found runs at {measured}."
    return f"Undecided: {measured}; the interval holds 1.0. More prompts or a quieter machine narrow it."


def _prompts(number: int, split: str, *, in_sample: bool = False) -> str:
    if in_sample:
        return f"on {number} prompts that the search had read (in sample)"
    if split == "test":
        return f"on {number} held-out prompts"
    return visible_line(f"on {number} prompts of the {split} split")


def _why_withheld(result: BenchResult, method: MethodResult) -> str:
    reasons = []
    if method.lossless.mismatches:
        reasons.append(
            f"{method.lossless.mismatches} of {method.num_runs} runs gave other tokens than the model does, "
            "so no speedup may be stated."
        )
    ratio = result.baseline_vs_generate
    if ratio is not None and ratio < 1:
        reasons.append(
            f"our autoregressive baseline runs at {text.times(ratio)} of model.generate, "
            "and a gain over a slow baseline is no gain."
        )
    return " Also, ".join(reasons) or "the warnings above say why."
