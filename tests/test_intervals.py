from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from selfspec_tune import intervals
from selfspec_tune.intervals import Interval, cluster_bootstrap, geometric_mean_ratio, ratio_of_totals

seconds = st.floats(0.01, 100.0)


def test_the_ratio_of_totals_weighs_by_time_and_the_geometric_mean_does_not() -> None:
    assert ratio_of_totals([1.0, 9.0], [2.0, 3.0]) == 2.0
    assert geometric_mean_ratio([1.0, 9.0], [2.0, 3.0]) == pytest.approx(math.sqrt(0.5 * 3.0))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(seconds, seconds, st.integers(0, 3)), min_size=1, max_size=12))
def test_the_interval_holds_its_value(runs: list[tuple[float, float, int]]) -> None:
    baseline, candidate, prompts = (list(column) for column in zip(*runs, strict=True))
    interval = cluster_bootstrap(baseline, candidate, prompts, resamples=500)
    assert interval.value == pytest.approx(ratio_of_totals(baseline, candidate))
    assert interval.low <= interval.high
    assert interval.low >= 0


@settings(deadline=None, max_examples=50)
@given(st.lists(seconds, min_size=2, max_size=8), st.floats(0.2, 5.0))
def test_a_constant_speedup_has_no_spread(baseline: list[float], speedup: float) -> None:
    candidate = [time / speedup for time in baseline]
    interval = cluster_bootstrap(baseline, candidate, range(len(baseline)), resamples=200)
    assert (interval.low, interval.value, interval.high) == pytest.approx((speedup,) * 3)


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(6)))
def test_repeats_of_a_prompt_are_one_cluster_in_whatever_order(order: list[int]) -> None:
    baseline, candidate, prompts = [1.0, 2.0, 3.0, 1.5, 2.5, 3.5], [1.0] * 6, ["a", "b", "c"] * 2
    totals = intervals.cluster_totals([baseline[i] for i in order], [prompts[i] for i in order])
    assert sorted(totals) == [2.5, 4.5, 6.5]
    assert cluster_bootstrap(baseline, candidate, prompts).value == pytest.approx(13.5 / 6)


def test_the_same_seed_gives_the_same_interval() -> None:
    runs = [1.0, 2.0, 3.0], [1.1, 1.7, 2.0], ["a", "b", "c"]
    assert cluster_bootstrap(*runs, seed=1) == cluster_bootstrap(*runs, seed=1)
    assert cluster_bootstrap(*runs, seed=1).value == cluster_bootstrap(*runs, seed=2).value


def test_one_prompt_says_nothing_of_others() -> None:
    interval = cluster_bootstrap([2.0, 2.0], [1.0, 1.0], ["a", "a"])
    assert interval == Interval(2.0, 0.0, math.inf)
    assert intervals.verdict(interval) == "undecided"


def test_the_geometric_mean_has_its_interval_too() -> None:
    interval = cluster_bootstrap([1.0, 9.0, 4.0], [2.0, 3.0, 2.0], ["a", "b", "c"], statistic=geometric_mean_ratio)
    assert interval.value == pytest.approx((0.5 * 3.0 * 2.0) ** (1 / 3))
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize("num_prompts", [4, 8, 40])
def test_the_interval_covers_the_truth_nearly_as_often_as_it_says(num_prompts: int) -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        baseline = generator.lognormal(0.0, 0.3, num_prompts)
        candidate = baseline / generator.lognormal(math.log(1.2), 0.2, num_prompts)
        interval = cluster_bootstrap(
            list(baseline), list(candidate), range(num_prompts),
            statistic=geometric_mean_ratio, resamples=400, seed=trial,
        )  # fmt: skip
        covered += interval.low <= 1.2 <= interval.high
    assert 0.91 <= covered / 300 <= 0.99


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 31, 128, 400, 401, 5000])
def test_student_quantiles_agree_with_scipy(degrees: int) -> None:
    for confidence in (0.5, 0.9, 0.95, 0.99):
        expected = student.ppf((1 + confidence) / 2, degrees)
        assert intervals._student_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-2)
        if degrees <= 400:
            assert intervals._student_quantile(confidence, degrees) == pytest.approx(expected, rel=1e-6)


def test_times_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        cluster_bootstrap([], [], [])
    with pytest.raises(ValueError, match="above zero"):
        cluster_bootstrap([1.0], [0.0], ["a"])
    with pytest.raises(ValueError, match="1 times for 2"):
        cluster_bootstrap([1.0], [1.0], ["a", "b"])


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (Interval(1.2, 1.1, 1.3), "faster"),
        (Interval(1.2, 0.9, 1.5), "undecided"),
        (Interval(1.0, 0.9, 1.1), "not_faster"),
        (Interval(0.8, 0.7, 0.9), "not_faster"),
        (Interval(0.9, 0.7, 1.1), "not_faster"),
        (Interval(1.0, 1.0, 1.0), "not_faster"),
    ],
)
def test_the_verdict_needs_the_whole_interval_above_one(interval: Interval, expected: str) -> None:
    assert intervals.verdict(interval) == expected


def test_a_null_run_that_drifts_excludes_one() -> None:
    steady = cluster_bootstrap([1.0, 2.0, 3.0, 1.0], [1.01, 1.99, 3.0, 1.0], "abcd")
    drifting = cluster_bootstrap([1.0, 2.0, 3.0, 1.0], [1.2, 2.4, 3.61, 1.2], "abcd")
    assert not intervals.excludes_one(steady)
    assert intervals.excludes_one(drifting)
    assert intervals.excludes_one(Interval(1.1, 1.05, 1.2))


def test_a_quiet_measurement_draws_no_warning() -> None:
    assert intervals.noise_warnings() == []
    warnings = intervals.noise_warnings(
        a_a=Interval(1.0, 0.99, 1.01),
        seconds={"a": [1.0, 1.1], "b": [2.0]},
        load_average=2.0,
        cores=2,
        num_prompts=32,
    )
    assert warnings == []


def test_every_source_of_noise_is_named_with_a_remedy() -> None:
    drift, load, spike, sample = intervals.noise_warnings(
        a_a=Interval(1.1, 1.05, 1.15),
        seconds={"a": [1.0, 1.0, 4.0], "b": [1.0, 1.0]},
        load_average=9.0,
        cores=2,
        num_prompts=8,
    )
    assert "1.100 [1.050, 1.150]" in drift
    assert "run the bench again" in drift
    assert "9.0 on 2 cores" in load
    assert "Stop them" in load
    assert "1 of 2 prompts" in spike
    assert "worst: a, 4.0 times" in spike
    assert "All were kept" in spike
    assert "`num_prompts`" in sample
