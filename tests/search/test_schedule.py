"""The planner as a pure function: costs and a time limit in, a schedule out."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import pytest

from selfspec_tune.errors import BudgetError
from selfspec_tune.requests import Objective
from selfspec_tune.search.budget import Schedule, reductions, told
from selfspec_tune.search.budget import tested as how_wide
from selfspec_tune.search.estimates import Costs, Estimates, Sizes
from selfspec_tune.search.fitting import fitting_schedule
from selfspec_tune.search.stages.calibration import texts_of

QUICKSTART = Sizes(16, 16, 32, prompt_tokens=235, max_new_tokens=128, texts=texts_of(Objective.SHARED), num_passes=120)
MINUTES = (60.0, 45.0, 30.0, 20.0, 15.0, 12.0, 10.0, 8.0, 6.0, 5.0, 4.0, 3.0)


def estimates(seconds: float | None, step: float = 0.03, sizes: Sizes = QUICKSTART) -> Estimates:
    """On a machine with a plain step of ``step`` seconds, a twelfth of it for a token of a prefill or a row of text."""
    return Estimates(sizes, Costs(step, step / 12, step / 12), seconds)


def fitted(seconds: float, step: float = 0.03, sizes: Sizes = QUICKSTART) -> Schedule:
    found = estimates(seconds, step, sizes).fitting(seconds)
    assert found is not None
    return found


def reduced(schedule: Schedule, seconds: float) -> set[str]:
    """Names of what is less than where there is time for everything."""
    full = estimates(seconds).full()
    return {field.name for field in fields(full) if getattr(schedule, field.name) < getattr(full, field.name)}


def test_without_a_limit_everything_is_done() -> None:
    full = estimates(None).full()
    assert (full.num_calibration, full.num_selection, full.num_test, full.max_new_tokens) == (16, 16, 32, 128)
    assert (full.num_trials, full.num_finalists, full.num_texts, full.num_references) == (12, 4, 3, 8)
    assert fitting_schedule(estimates(None), 30.0) == full


def test_where_there_is_time_nothing_is_given_up() -> None:
    assert reduced(fitted(3600.0, step=0.008), 3600.0) == set()
    assert not list(told(estimates(3600.0).full(), fitted(3600.0)))


def test_trials_go_before_finalists_and_those_before_test_prompts_and_those_before_answers() -> None:
    order = ("num_trials", "num_finalists", "num_test", "max_new_tokens")
    seen = []
    for minutes in MINUTES:
        gone = reduced(fitted(60 * minutes), 60 * minutes)
        given_up = [name in gone for name in order]
        assert given_up == sorted(given_up, reverse=True), f"{minutes} min: {gone}"
        seen.append(sum(given_up))
    assert set(seen) == {0, 1, 2, 3, 4}


def test_less_time_never_gives_more() -> None:
    found = [fitted(60 * minutes) for minutes in MINUTES]
    for more, less in pairwise(found):
        for field in fields(Schedule):
            assert getattr(less, field.name) <= getattr(more, field.name), field.name


def test_what_is_planned_fits_and_uses_most_of_the_time() -> None:
    for minutes in MINUTES:
        seconds = 60 * minutes
        total = estimates(seconds).total(fitted(seconds))
        assert total <= seconds
        if reduced(fitted(seconds), seconds):
            assert total > 0.7 * seconds


def test_the_least_is_a_draft_one_trial_and_a_test_on_8_prompts() -> None:
    *_, least = reductions(estimates(None).full())
    assert least == Schedule(
        max_new_tokens=32,
        num_calibration=4,
        num_held_out=0,
        num_texts=0,
        num_trials=1,
        num_windows=4,
        num_finalists=1,
        num_selection=4,
        num_test=8,
        num_references=3,
    )


def test_a_small_set_is_not_cut_below_what_it_has() -> None:
    small = Sizes(1, 1, 2, prompt_tokens=20, max_new_tokens=16, texts=texts_of(Objective.SHARED), num_passes=16)
    *_, least = reductions(estimates(None, sizes=small).full())
    assert (least.num_calibration, least.num_selection, least.num_test, least.max_new_tokens) == (1, 1, 2, 16)
    assert least.num_references == 2


def test_a_draft_that_stands_alone_is_always_predicted() -> None:
    alone = replace(QUICKSTART, texts=texts_of(Objective.STANDALONE), computes_prompts=True)
    for seconds in (3600.0, 480.0, estimates(None, sizes=alone).least_seconds()):
        assert fitted(seconds, sizes=alone).num_texts > 0


def test_what_cannot_fit_is_refused_with_the_least_time_that_works() -> None:
    with pytest.raises(
        BudgetError, match=r"`timeout` 20s is too short: a token takes 30 ms here; .* on 8 prompts"
    ) as at:
        fitting_schedule(estimates(20.0), 5.0)
    least = float(str(at.value).split("take about ")[1].split(" s")[0])
    assert 20.0 < least < 180.0
    assert fitting_schedule(estimates(least), 5.0).num_test == 8


@pytest.mark.parametrize("step", [0.02, 0.04, 0.06])
def test_eight_minutes_hold_a_quickstart_on_slow_machines(step: float) -> None:
    assert fitted(460.0, step).num_test >= 8


@pytest.mark.parametrize("step", [0.005, 0.008])
def test_eight_minutes_hold_the_whole_test_on_fast_ones(step: float) -> None:
    assert fitted(460.0, step).num_test == 32


def test_a_strategy_without_predictions_has_no_texts_to_read() -> None:
    other = replace(QUICKSTART, texts=None)
    full = estimates(None, sizes=other).full()
    assert (full.num_texts, full.num_held_out, full.num_calibration) == (0, 0, 8)
    stages = estimates(600.0, sizes=other).stages(full)
    assert stages["importance"] == 0.0
    assert not [line for line in told(full, fitted(180.0, sizes=other)) if "predict which" in line]


def test_each_reduction_is_told_in_a_line_with_what_it_does_to_the_interval() -> None:
    full = estimates(480.0).full()
    lines = list(told(full, replace(full, num_trials=1, num_finalists=2, num_test=8, max_new_tokens=32)))
    assert len(lines) == 3
    assert all("interval" in line for line in lines)
    assert "8 of 32 prompts, with answers of up to 32 tokens, not 128" in lines[2]
    assert "its interval is up to 4.0 times as wide" in lines[2]
    (line,) = told(full, replace(full, num_test=8))
    assert line == "time to test on about 8 of 32 prompts: the interval is about 2.0 times as wide"
    (line,) = told(full, replace(full, max_new_tokens=32))
    assert line.startswith("answers of up to 32 tokens, not 128")
    assert line.endswith("up to 2.0 times as wide")
    assert how_wide(16, 32) == "16 of 32 prompts: the interval is about 1.4 times as wide"


def test_fewer_trials_are_told_where_there_are_hardly_any() -> None:
    full = estimates(480.0).full()
    assert not list(told(full, replace(full, num_trials=4)))
    (line,) = told(full, replace(full, num_trials=1))
    assert line.startswith("time for about 1 trial of 8 windows, not 12 of 8: the draft rests more on predictions")
    few = estimates(480.0, sizes=replace(QUICKSTART, most_trials=2)).full()
    assert not list(told(few, few))


def test_what_predictions_lose_is_told_where_they_are_made() -> None:
    full = estimates(480.0).full()
    (line,) = told(full, replace(full, num_texts=1))
    assert line.startswith("predictions are made on 1 text, not 3: they are less sure")
    (line,) = told(full, replace(full, num_calibration=8, num_texts=2))
    assert line.startswith("predictions read the answers to 8 prompts, not 16, and are made on 2 texts, not 3: they")
    other = estimates(480.0, sizes=replace(QUICKSTART, texts=None)).full()
    lines = list(told(other, replace(other, num_calibration=4, num_trials=1)))
    assert len(lines) == 2
    assert not any("predict" in line for line in lines)


def test_finalists_shrink_to_what_is_left_drafts_before_prompts() -> None:
    found = estimates(480.0)
    planned = found.full()
    each = found.finalists(planned) / (1 + planned.num_finalists)
    assert found.finalists_within(planned, found.finalists(planned)) == planned
    assert found.finalists_within(planned, 4.5 * each).num_finalists == 3
    fewer = found.finalists_within(planned, 2.5 * each)
    assert fewer.num_finalists == 2
    assert 4 <= fewer.num_selection < planned.num_selection
    assert found.finalists_within(planned, -1.0).num_finalists == 1


def test_under_another_limit_what_was_read_stays_and_the_rest_only_grows() -> None:
    short, long = fitted(300.0), fitted(3600.0)
    going_on = long.going_on_from(short)
    assert going_on.max_new_tokens == short.max_new_tokens < long.max_new_tokens
    assert (going_on.num_calibration, going_on.num_windows) == (short.num_calibration, short.num_windows)
    assert (going_on.num_test, going_on.num_finalists) == (long.num_test, long.num_finalists)
    assert short.going_on_from(going_on).num_test == long.num_test


def test_a_search_that_goes_on_is_planned_with_the_lengths_that_it_keeps() -> None:
    short = fitted(240.0)
    assert short.max_new_tokens < 128
    going_on = estimates(600.0).going_on_from(short)
    planned = going_on.fitting(600.0)
    assert planned is not None
    assert planned == planned.going_on_from(short)
    assert planned.num_test > fitted(600.0).going_on_from(short).num_test
    assert going_on.total(planned) <= 600.0
    assert going_on.full().max_new_tokens == short.max_new_tokens


@pytest.mark.parametrize(("sound", "most", "number"), [(1.0, 32, 8), (0.75, 32, 11), (0.75, 9, 9), (0.0, 12, 12)])
def test_time_is_kept_for_8_answers_that_do_not_degenerate(sound: float, most: int, number: int) -> None:
    full = estimates(None).full()
    few = replace(full, num_test=8)
    assert few.for_sound(sound, most) == replace(few, num_test=number)
    assert replace(full, num_test=20).for_sound(sound, 20).num_test == 20
