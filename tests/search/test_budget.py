from __future__ import annotations

from selfspec_tune.search.budget import NUM_SELECTION_ITEMS
from selfspec_tune.search.estimates import Costs, Estimates, Sizes


def estimates(timeout_seconds: float | None, selection: int = 20) -> Estimates:
    return Estimates(
        Sizes(20, selection, 40, prompt_tokens=100, max_new_tokens=128), Costs(0.06, 0.005), timeout_seconds
    )


def test_finalists_compete_on_as_many_prompts_as_an_eighth_of_the_time_allows() -> None:
    assert estimates(None).full().num_selection == 20
    assert estimates(180.0).full().num_selection == NUM_SELECTION_ITEMS
    assert NUM_SELECTION_ITEMS < estimates(2700.0).full().num_selection < 20
    assert estimates(86400.0).full().num_selection == 20
    assert estimates(2700.0, selection=3).full().num_selection == 3


def test_what_they_need_is_reserved() -> None:
    found = estimates(2700.0)
    some = found.full()
    assert 2700 / 10 < found.finalists(some) <= 2700 / 8 < found.finalists(estimates(None).full())
    assert found.reserved(some) == found.finalists(some) + found.test(some)
