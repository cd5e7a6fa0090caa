"""Ratios of paired times with their uncertainty: pure functions over plain numbers.

A speedup is baseline time divided by candidate time of the *same* prompt in the same
process; above 1 the candidate is faster. Nothing is ever deleted as an outlier: what looks
wrong is reported by `noise_warnings`, with what to do about it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray, FloatArray], FloatArray]
Verdict = Literal["faster", "not_faster", "undecided"]

FEWEST_PUBLISHED_PROMPTS = 32
FEWEST_TESTED = 8  # prompts of a test: fewer tell nothing
_NORMAL_LIMIT = 400
_LOAD_LIMIT = 1.25
_SPIKE_RATIO = 1.5


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence bounds; ``low`` 0 and ``high`` infinite: nothing is known."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@overload
def ratio_of_totals(baseline: Sequence[float], candidate: Sequence[float]) -> float: ...
@overload
def ratio_of_totals(baseline: FloatArray, candidate: FloatArray) -> FloatArray: ...
def ratio_of_totals(
    baseline: Sequence[float] | FloatArray, candidate: Sequence[float] | FloatArray
) -> float | FloatArray:
    """Total baseline time over total candidate time, along the last axis."""
    ratio: FloatArray = np.sum(baseline, axis=-1) / np.sum(candidate, axis=-1)
    return ratio


@overload
def geometric_mean_ratio(baseline: Sequence[float], candidate: Sequence[float]) -> float: ...
@overload
def geometric_mean_ratio(baseline: FloatArray, candidate: FloatArray) -> FloatArray: ...
def geometric_mean_ratio(
    baseline: Sequence[float] | FloatArray, candidate: Sequence[float] | FloatArray
) -> float | FloatArray:
    """Geometric mean of the elementwise ratios baseline ÷ candidate, along the last axis."""
    mean: FloatArray = np.exp(np.mean(np.log(baseline) - np.log(candidate), axis=-1))
    return mean


def cluster_totals(times: Sequence[float], clusters: Sequence[Hashable]) -> FloatArray:
    """Sum of ``times`` in each cluster, in order of first appearance. Shape: (clusters,)."""
    if len(times) != len(clusters):
        raise ValueError(f"{len(times)} times for {len(clusters)} cluster labels; expected as many.")
    totals: dict[Hashable, float] = {}
    for time, cluster in zip(times, clusters, strict=True):
        totals[cluster] = totals.get(cluster, 0.0) + time
    return np.array(list(totals.values()), dtype=np.float64)


def cluster_bootstrap(
    baseline: Sequence[float],
    candidate: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    statistic: Statistic = ratio_of_totals,
    resamples: int = 4000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Confidence interval of a speedup by resampling clusters, that is, prompts.

    Repeated runs of one prompt are not independent, so whole prompts are drawn with
    replacement (Davison & Hinkley 1997, section 3.8). The percentile interval of few
    clusters is too narrow; on the log scale it is widened by √(n/(n-1)) · t(n-1)/z, what
    turns a normal interval into Student's. One cluster says nothing of others: its
    interval is [0, ∞].

    Args:
        baseline: seconds, one a run, each above zero.
        candidate: seconds of the paired runs.
        clusters: the prompt of each run.
        statistic: reduces (…, clusters) totals along the last axis.

    Raises:
        ValueError: no runs, unequal lengths, or a time that is not positive.
    """
    totals = cluster_totals(baseline, clusters), cluster_totals(candidate, clusters)
    if not clusters or min(*baseline, *candidate) <= 0:
        raise ValueError("A speedup needs at least one pair of runs, and times above zero.")
    value = float(statistic(*totals))
    num_clusters = len(totals[0])
    if num_clusters == 1:
        return Interval(value, 0.0, math.inf)
    draws = np.random.default_rng(seed).integers(num_clusters, size=(resamples, num_clusters))
    ratios = statistic(totals[0][draws], totals[1][draws])
    tail = (1 - confidence) / 2
    low, high = (float(bound) for bound in np.quantile(ratios, [tail, 1 - tail]))
    widening = _small_sample_widening(num_clusters, confidence)
    return Interval(value, value * (low / value) ** widening, value * (high / value) ** widening)


def excludes_one(interval: Interval) -> bool:
    """Whether a ratio of 1.0 lies outside the interval."""
    return interval.low > 1.0 or interval.high < 1.0


def has_excess_ties(ties: int, runs: int, reference_ties: int, reference_runs: int) -> bool:
    """Whether ``ties`` of ``runs`` is surely more than twice the rate of a reference.

    One-sided binomial test at 1 %; the reference's rate is taken as (ties + 1) / (runs + 1),
    so that few reference runs without a tie do not count as proof of none.
    """
    rate = min(1.0, 2 * (reference_ties + 1) / (reference_runs + 1))
    tail = sum(math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(ties, runs + 1))
    return tail < 0.01


def verdict(interval: Interval) -> Verdict:
    """What a speedup's interval allows to say; undecided when it reaches from gain to loss."""
    if interval.low > 1.0:
        return "faster"
    if interval.value <= 1.0:
        return "not_faster"
    return "undecided"


def noise_warnings(
    *,
    a_a: Interval | None = None,
    seconds: Mapping[str, Sequence[float]] | None = None,
    load_average: float | None = None,
    cores: int | None = None,
    num_prompts: int | None = None,
) -> list[str]:
    """What makes a measurement doubtful, each with what to do next.

    Args:
        a_a: the baseline against itself.
        seconds: per prompt, the times of repeated runs of the same work.
        load_average: of the last minute, in runnable threads; ours are among them.
        cores: those the process may use.
        num_prompts: how many prompts the result rests on.
    """
    found = [
        _drift_warning(a_a),
        _load_warning(load_average, cores),
        _spike_warning(seconds or {}),
        _sample_warning(num_prompts),
    ]
    return [warning for warning in found if warning is not None]


def spikes(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Per prompt, the slowest repeat as a multiple of the median, where it exceeds 1.5."""
    ratios = {prompt: max(times) / median(times) for prompt, times in seconds.items() if len(times) > 1}
    return {prompt: ratio for prompt, ratio in ratios.items() if ratio > _SPIKE_RATIO}


def _drift_warning(a_a: Interval | None) -> str | None:
    if a_a is None or not excludes_one(a_a):
        return None
    return (
        f"The baseline against itself measured {a_a}, which excludes 1.0: this machine is too noisy "
        "for the figures below. Close other programs, fix the CPU clock, and run the bench again."
    )


def _load_warning(load_average: float | None, cores: int | None) -> str | None:
    if load_average is None or cores is None or load_average <= _LOAD_LIMIT * cores:
        return None
    return (
        f"The load average is {load_average:.1f} on {cores} cores: other programs compete for them. "
        "Stop them, or use fewer threads than cores, and run again."
    )


def _spike_warning(seconds: Mapping[str, Sequence[float]]) -> str | None:
    found = spikes(seconds)
    if not found:
        return None
    worst = max(found, key=lambda prompt: found[prompt])
    return (
        f"{len(found)} of {len(seconds)} prompts had a run over {_SPIKE_RATIO} times its median "
        f"(worst: {worst}, {found[worst]:.1f} times). All were kept. Add rounds on a quiet machine."
    )


def _sample_warning(num_prompts: int | None) -> str | None:
    if num_prompts is None or num_prompts >= FEWEST_PUBLISHED_PROMPTS:
        return None
    return (
        f"The result rests on {num_prompts} prompts; a figure to publish needs at least "
        f"{FEWEST_PUBLISHED_PROMPTS}. Raise `num_prompts`."
    )


def _small_sample_widening(num_clusters: int, confidence: float) -> float:
    normal = NormalDist().inv_cdf((1 + confidence) / 2)
    student = _student_quantile(confidence, num_clusters - 1)
    return math.sqrt(num_clusters / (num_clusters - 1)) * student / normal


def _student_quantile(confidence: float, degrees: int) -> float:
    """t with P(|T| ≤ t) = ``confidence``, by bisection over the angle atan(t/√degrees)."""
    if degrees > _NORMAL_LIMIT:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _student_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _student_probability(angle: float, degrees: int) -> float:
    """P(|T| ≤ √degrees · tan angle), the finite series of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
