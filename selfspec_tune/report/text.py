"""Figures and verdicts in words: one way to write each, wherever it appears."""

from __future__ import annotations

import math
from typing import Protocol

from rich import box
from rich.table import Table

from selfspec_tune.checks import visible_line
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.intervals import FEWEST_TESTED
from selfspec_tune.reporting import Candidate
from selfspec_tune.results import BenchResult, MethodResult, PositionCounts, Score

UNKNOWN = "–"
MAP_LEGEND = "█ kept   · skipped"
_LABEL_WIDTH = 5
_FIRST_GROUPED = 5  # positions in a draft from here on stand together: 5–8, 9–16, …
SELF_SPECULATIVE = "self-speculative"
STYLES = {
    "faster": "bold green",
    "not_faster": "bold yellow",
    "undecided": "bold yellow",
    "withheld": "bold red",
}


class Bounds(Protocol):
    """An estimate with its confidence bounds, whichever module's class it is."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def times(value: float) -> str:
    """A ratio: ``1.21×``."""
    return f"{value:.2f}×"


def bounds(interval: Bounds, separator: str = "–") -> str:
    """The bounds of an interval, ``1.15–1.27``; empty where they are the value itself."""
    if interval.low == interval.high:
        return ""
    if interval.low <= 0 and math.isinf(interval.high):
        return "unbounded"
    return f"{interval.low:.2f}{separator}{interval.high:.2f}"


def speedup(interval: Bounds | None, gap: str = " ") -> str:
    """A speedup with its bounds, ``1.21× [1.15–1.27]``; ``gap`` stands between the two."""
    if interval is None:
        return UNKNOWN
    span = bounds(interval)
    return f"{times(interval.value)}{gap}[{span}]" if span else times(interval.value)


def figure(value: float | None, digits: int) -> str:
    """A number with so many decimals, or a dash."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def spelled_out(text: str, most: int) -> str:
    """``text`` with line ends, control characters and the like written as escapes: ``\\n``, ``\\x1b``, ``\\u202e``.

    Of one with more than ``most`` characters, a half of them from its beginning and a half from its end.
    """
    if len(text) > most:
        half = most // 2
        left_out = len(text) - 2 * half
        return f"{spelled_out(text[:half], half)} […{left_out} characters…] {spelled_out(text[-half:], half)}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def percent(share: float | None) -> str:
    """A share from 0 to 1 in percent, or a dash."""
    return UNKNOWN if share is None else f"{100 * share:.0f} %"


def by_position(counts: PositionCounts | None) -> str:
    """``98 % of 60 at 1, … 80 % of 90 at 5–8``: of the tokens drafted there the share accepted; a dash: not known."""
    if counts is None:
        return UNKNOWN
    parts, first = [], 1
    while first <= len(counts.drafted):
        last = min(first if first < _FIRST_GROUPED else 2 * first - 2, len(counts.drafted))
        drafted = sum(counts.drafted[first - 1 : last])
        accepted = sum(counts.accepted[first - 1 : last])
        place = f"{first}" if first == last else f"{first}–{last}"
        parts.append(f"{percent(accepted / drafted)} of {drafted} at {place}")
        first = last + 1
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """``0:45``, ``12:05`` or ``1:02:05``; never negative."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size(num_bytes: float) -> str:
    """``512 B``, ``1.4 GiB``: binary units."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def origin_and_number(candidate: Candidate) -> str:
    """How a candidate is referred to: ``#14 tpe``."""
    return f"#{candidate.number} {candidate.origin}".rstrip()


def candidate_speedup(candidate: Candidate) -> str:
    """Its speedup, and whether the pruner ended its measurement."""
    text = "not measured" if candidate.speedup is None else speedup(candidate.speedup)
    return f"{text} stopped early" if candidate.stopped_early else text


def layer_map_rows(skip_set: SkipSet, width: int) -> list[str]:
    """The two rows of the layer map, broken into more pairs of rows where ``width`` is less.

    Later pairs start with the number of their first layer.
    """
    attention, mlp = skip_set.layer_map().splitlines()
    chunk = max(8, width - _LABEL_WIDTH)
    rows: list[str] = []
    for start in range(0, skip_set.num_layers, chunk):
        part = slice(_LABEL_WIDTH + start, _LABEL_WIDTH + start + chunk)
        label = str(start) if start else attention[:_LABEL_WIDTH].strip()
        rows += [f"{label:<4} {attention[part]}", f"{mlp[:_LABEL_WIDTH]}{mlp[part]}"]
    return rows


def table(*headers: str) -> Table:
    """An empty table in the one style that all of them share."""
    return Table(*headers, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


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


def _sound(figures: MethodResult | Score, split: str, *, in_sample: bool = False) -> tuple[Bounds | None, str]:
    """The speedup that the verdict goes by, and on which prompts: those whose answers do not degenerate."""
    rest = figures.without_degenerate
    if rest is None:
        return figures.end_to_end_speedup, _prompts(figures.num_prompts, split, in_sample=in_sample)
    prompts = _prompts(rest.num_prompts, split, in_sample=in_sample)
    few = f", fewer than the {FEWEST_TESTED} that a verdict needs" if rest.num_prompts < FEWEST_TESTED else ""
    return rest.end_to_end_speedup, f"{prompts} whose answers do not degenerate{few}"


def _sentence(verdict: str, speedup: Bounds | None, prompts: str) -> str:
    if speedup is None:
        return f"{verdict.replace('_', ' ').capitalize()}, without an end-to-end speedup, {prompts}."
    span = bounds(speedup) or times(speedup.value)
    measured = f"{times(speedup.value)} end to end (95 % interval {span}) {prompts}"
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
            f"our autoregressive baseline runs at {times(ratio)} of model.generate, "
            "and a gain over a slow baseline is no gain."
        )
    return " Also, ".join(reasons) or "the warnings above say why."
