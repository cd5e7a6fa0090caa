from __future__ import annotations

import math
from dataclasses import replace

import pytest

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.intervals import Interval
from selfspec_tune.search.conclusion import bounded, plain_drift, promise_kept, why_apart
from tests.runs import paired_run


@pytest.mark.parametrize(
    ("promised", "obtained", "agrees"),
    [
        (Interval(1.6, 1.4, 1.8), Interval(1.5, 1.4, 1.6), True),
        (Interval(3.3, 2.9, 3.7), Interval(2.2, 2.0, 2.4), False),
        (Interval(1.5, 1.4, 1.6), Interval(2.0, 1.9, 2.1), False),
        (Interval(3.3, 0.0, math.inf), Interval(2.2, 2.0, 2.4), True),  # one prompt tells nothing
    ],
)
def test_the_test_is_held_against_what_the_selection_prompts_promised(
    promised: Interval, obtained: Interval, agrees: bool
) -> None:
    text = promise_kept(promised, obtained)
    assert f"{obtained.value:.2f}× on the test prompts, {promised.value:.2f}× on the selection prompts" in text
    assert ("they agree within their intervals" in text) is agrees


def test_an_unbounded_interval_is_plain_json() -> None:
    assert bounded(Interval(1.5, 0.0, math.inf)) == {"value": 1.5, "low": 0.0, "high": None}


def test_a_large_gap_says_whether_the_machine_changed_or_the_steps_are_dearer_in_a_run() -> None:
    same = {Precision.SAME: 0.01}
    costs = CostModel((0.06, 0.07), same, same, same, num_layers=2)
    draft = Draft(SkipSet(2, (0,)))
    runs = [paired_run(f"p{i}") for i in range(3)]
    steps = sum(run.baseline.decode_steps for run in runs)
    decoding = sum(run.baseline.decode_seconds for run in runs)
    as_timed = replace(costs, verify=(decoding / steps, 0.07))
    assert plain_drift(runs, draft, as_timed) == pytest.approx(1.0)
    assert "cost more in a run than alone" in why_apart(plain_drift(runs, draft, as_timed))
    slower = replace(costs, verify=(2 * decoding / steps, 0.07))
    assert plain_drift(runs, draft, slower) == pytest.approx(0.5)
    assert "0.50 times what they took when the steps were timed" in why_apart(0.5)
