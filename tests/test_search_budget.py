from __future__ import annotations

import pytest

from selfspec_tune.search.budget import NUM_SELECTION_ITEMS, Costs, Shares, estimate_shares


def shares(timeout_seconds: float | None, num_selection: int = 20) -> Shares:
    return estimate_shares(
        Costs(0.06, 0.005),
        prompt_tokens=100,
        max_new_tokens=128,
        num_selection=num_selection,
        num_test=40,
        timeout_seconds=timeout_seconds,
    )


def test_finalists_compete_on_as_many_prompts_as_an_eighth_of_the_time_allows() -> None:
    assert shares(None).num_selection == 20
    assert shares(180.0).num_selection == NUM_SELECTION_ITEMS
    assert NUM_SELECTION_ITEMS < shares(2700.0).num_selection < 20
    assert shares(86400.0).num_selection == 20
    assert shares(2700.0, num_selection=3).num_selection == 3


def test_what_they_need_is_reserved() -> None:
    found = shares(2700.0)
    assert found.selection == pytest.approx(shares(None).selection * found.num_selection / 20)
    assert found.reserved == found.selection + found.test
