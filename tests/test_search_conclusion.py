from __future__ import annotations

import math

import pytest

from selfspec_tune.search.conclusion import bounded, promise_kept
from selfspec_tune.statistics import Interval


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
