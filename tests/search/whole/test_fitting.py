"""Searches on slow machines: their costs are made up and so is the clock; how they end is not."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from typing import Any

import pytest

from selfspec_tune.draft import Draft
from selfspec_tune.errors import BudgetError
from selfspec_tune.files import read_json
from selfspec_tune.measure.workload import WorkItem
from selfspec_tune.requests import StrategyName
from selfspec_tune.results import SkipConfig
from selfspec_tune.search import budget, fitting, plan_search, run_search
from selfspec_tune.search import run as run_module
from selfspec_tune.search.estimates import Costs
from selfspec_tune.search.fitting import Timed, time_few_steps
from selfspec_tune.search.setup import SearchSetup, open_setup
from tests.search_kit import Listener, ScriptedEngine, read_rows

SLOW = Timed(Costs(0.06, 0.005, 0.005))
SHORT, LONG = 250.0, 7200.0


class FakeClock:
    """Time passes where it is told to, and by ``tick`` at every look."""

    def __init__(self) -> None:
        self.now = self.tick = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(budget, "monotonic", fake)
    return fake


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[SearchSetup]:
    """A slow machine; the settings that it was timed for."""
    asked: list[SearchSetup] = []

    def timed(setting: SearchSetup) -> Timed:
        asked.append(setting)
        return SLOW

    monkeypatch.setattr(fitting, "time_few_steps", timed)
    return asked


def test_a_search_on_a_slow_machine_ends_with_a_verdict(
    make_request: Any, engine: ScriptedEngine, clock: FakeClock, slow: list[SearchSetup]
) -> None:
    request, listener = make_request(trials=None, timeout_seconds=SHORT, max_new_tokens=64, num_prompts=20), Listener()

    def pass_time(measured: int) -> None:
        clock.now += 0.5

    engine.before_block = pass_time
    clock.tick = 0.05  # so that the predictions' time ends too
    outcome = run_search(request, listener)
    assert outcome.bench is not None
    assert outcome.skip_config.score.verdict == "faster"
    assert outcome.skip_config.score.num_prompts >= 8
    schedule = read_json(request.out / "schedule.json")["schedule"]
    assert 32 <= schedule["max_new_tokens"] < 64
    assert outcome.skip_config.provenance["prompts"]["max_new_tokens"] == schedule["max_new_tokens"]
    told = [notice for notice in listener.notices if "interval" in notice]
    assert any("answers of up to" in notice for notice in told)
    assert any("do not hold a whole search" in notice for notice in listener.notices)


def test_nothing_is_decoded_further_than_the_schedule_says(make_request: Any, slow: list[SearchSetup]) -> None:
    outcome = run_search(make_request(trials=1, timeout_seconds=SHORT, max_new_tokens=64, num_prompts=20), Listener())
    schedule = read_json(outcome.out / "schedule.json")["schedule"]
    assert outcome.bench is not None
    longest = max(run.baseline.num_tokens for run in outcome.bench.runs)
    answers = read_json(outcome.out / "calibration.json")["answers"]
    assert longest <= schedule["max_new_tokens"]
    assert len(answers) == schedule["num_calibration"]
    assert max(len(tokens) for tokens in answers.values()) <= schedule["max_new_tokens"]


def test_where_not_even_the_least_fits_no_stage_begins(
    make_request: Any, engine: ScriptedEngine, slow: list[SearchSetup]
) -> None:
    listener = Listener()
    with pytest.raises(BudgetError, match=r"`timeout` 5s is too short: a token takes 60 ms here"):
        run_search(make_request(trials=None, timeout_seconds=5.0), listener)
    assert listener.stage_names == ["load"]
    assert not (make_request().out / "calibration.json").exists()


def test_a_moment_in_which_others_compute_ends_no_search(
    make_request: Any, engine: ScriptedEngine, slow: list[SearchSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = iter([Timed(Costs(0.02, 9.0, 9.0)), SLOW])
    monkeypatch.setattr(fitting, "time_few_steps", lambda setting: next(busy))
    request = make_request(trials=1, timeout_seconds=SHORT, max_new_tokens=64, num_prompts=20)
    assert run_search(request, Listener()).bench is not None
    costs = read_json(request.out / "schedule.json")["costs"]
    assert costs == Costs(0.02, SLOW.costs.prefill_token, SLOW.costs.row).to_dict()


def test_the_same_command_resumes_by_the_same_schedule_whatever_the_machine_does(
    make_request: Any, engine: ScriptedEngine, slow: list[SearchSetup], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(trials=2, timeout_seconds=SHORT, max_new_tokens=64)

    def interrupt(measured: int) -> None:
        raise KeyboardInterrupt

    engine.before_block = interrupt
    assert run_search(request, Listener()).interrupted
    before = (request.out / "schedule.json").read_bytes()
    engine.before_block = lambda measured: None
    monkeypatch.setattr(fitting, "time_few_steps", lambda setting: Timed(Costs(9.0, 9.0, 9.0)))
    listener = Listener()
    assert run_search(request, listener).bench is not None
    assert (request.out / "schedule.json").read_bytes() == before
    assert len(slow) == 1
    assert any("answers of up to" in notice for notice in listener.notices)


def test_a_longer_time_plans_anew_what_was_not_measured_and_mixes_no_lengths(
    make_request: Any, engine: ScriptedEngine, slow: list[SearchSetup]
) -> None:
    fields = {"trials": 2, "max_new_tokens": 64, "num_prompts": 20}
    run_search(make_request(timeout_seconds=SHORT, **fields), Listener())
    short = read_json(make_request().out / "schedule.json")["schedule"]
    outcome = run_search(make_request(timeout_seconds=LONG, **fields), Listener())
    long = read_json(outcome.out / "schedule.json")["schedule"]
    assert long["max_new_tokens"] == short["max_new_tokens"] < 64
    assert long["num_test"] == 10 > short["num_test"] == 8
    assert SkipConfig.load(outcome.out / "skip.json").score.num_prompts == 10
    assert len(slow) == 1


def test_without_a_limit_no_time_is_said_to_be_short(
    make_request: Any, engine: ScriptedEngine, slow: list[SearchSetup]
) -> None:
    fields = {"max_new_tokens": 64, "num_prompts": 20}
    run_search(make_request(trials=1, timeout_seconds=SHORT, **fields), Listener())
    listener = Listener()
    assert run_search(make_request(trials=2, **fields), listener).bench is not None
    assert not any("do not hold" in notice or "time to" in notice for notice in listener.notices)


def test_what_the_earlier_run_fixed_is_said_in_a_sentence_and_not_blamed_on_the_time(
    make_request: Any, engine: ScriptedEngine, slow: list[SearchSetup]
) -> None:
    fields = {"max_new_tokens": 64, "num_prompts": 20}
    run_search(make_request(trials=1, timeout_seconds=SHORT, **fields), Listener())
    listener = Listener()
    outcome = run_search(make_request(trials=1, timeout_seconds=LONG, **fields), listener)
    schedule = read_json(outcome.out / "schedule.json")["schedule"]
    (said,) = [notice for notice in listener.notices if "answers of up to" in notice]
    assert said.startswith(f"this search was begun with answers of up to {schedule['max_new_tokens']} tokens, ")
    assert said.endswith("a new `out` begins with whole ones")
    assert not any("do not hold" in notice for notice in listener.notices)


def test_more_trials_within_the_same_limit_are_planned_anew(
    make_request: Any, engine: ScriptedEngine, slow: list[SearchSetup]
) -> None:
    run_search(make_request(trials=1, timeout_seconds=LONG), Listener())
    listener = Listener()
    outcome = run_search(make_request(trials=3, timeout_seconds=LONG), listener)
    assert read_json(outcome.out / "schedule.json")["schedule"]["num_trials"] == 3
    assert not any("time for" in notice for notice in listener.notices)


def test_a_search_begun_without_a_limit_goes_on_with_whole_answers_under_one(
    make_request: Any, engine: ScriptedEngine, slow: list[SearchSetup]
) -> None:
    run_search(make_request(trials=1, max_new_tokens=64), Listener())
    assert not (make_request().out / "schedule.json").exists()
    outcome = run_search(make_request(trials=2, max_new_tokens=64, timeout_seconds=SHORT), Listener())
    assert outcome.skip_config.provenance["prompts"]["max_new_tokens"] == 64


def test_when_the_time_is_up_the_test_ends_after_8_prompts_in_their_fixed_order(
    make_request: Any, engine: ScriptedEngine, clock: FakeClock
) -> None:
    request = make_request(trials=1, timeout_seconds=LONG, num_prompts=20)

    def pass_time(measured: int) -> None:
        clock.now += 2 * LONG if (request.out / "test.jsonl").exists() else 0.0

    engine.before_block = pass_time
    listener = Listener()
    outcome = run_search(request, listener)
    assert outcome.bench is not None
    test = open_setup(request, Listener()).test
    assert len(test) == 10
    main = [run for run in outcome.bench.runs if run.method.startswith("self-speculative")]
    assert [run.prompt_hash for run in main] == [item.prompt.hash for item in test[:8]]
    assert any("the test ended after 8 of 10 prompts" in notice for notice in listener.notices)
    assert outcome.skip_config.score.num_prompts == 8


def test_where_answers_degenerate_time_is_kept_for_8_that_do_not(
    make_request: Any,
    engine: ScriptedEngine,
    slow: list[SearchSetup],
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judgements = cycle([True, False, False, False])
    monkeypatch.setattr(run_module, "judged", lambda workload, tokens, *, ended: next(judgements))
    fields = {"trials": None, "timeout_seconds": SHORT, "max_new_tokens": 64, "num_prompts": 20}
    request, listener = make_request(**fields), Listener()

    def pass_time(measured: int) -> None:
        clock.now += 0.5

    engine.before_block = pass_time
    clock.tick = 0.05
    outcome = run_search(request, listener)
    assert any("answers degenerate: time is kept for 10 test prompts, not 8" in notice for notice in listener.notices)
    (test,) = [detail for name, detail in listener.stages if name == "test"]
    assert test.startswith("the winner on 10 held-out prompts")
    assert outcome.skip_config.score.num_prompts == 10


def test_when_trials_took_the_time_fewer_finalists_compete(
    make_request: Any, engine: ScriptedEngine, clock: FakeClock
) -> None:
    request = make_request(trials=2, timeout_seconds=LONG)

    def pass_time(measured: int) -> None:
        clock.now = 2 * LONG

    engine.before_block = pass_time
    listener = Listener()
    outcome = run_search(request, listener)
    assert "finalists" not in listener.stage_names
    assert any("the best of the trials is tested" in notice for notice in listener.notices)
    assert outcome.bench is not None
    assert outcome.skip_config.provenance["search"]["selection_speedup"] is None


def test_without_time_for_predictions_the_draft_that_needs_no_search_is_measured(
    make_request: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "time_few_steps", lambda setting: Timed(Costs(0.06, 0.005, 100.0)))
    listener = Listener()
    outcome = run_search(make_request(trials=1, timeout_seconds=SHORT, vocabulary="auto", ngram=True), listener)
    assert "importance" not in listener.stage_names
    assert "proxy" not in listener.stage_names
    assert any("no time to predict" in notice for notice in listener.notices)
    assert [candidate.origin for candidate in listener.trials] == ["base"]
    assert outcome.skip_config.skip_set().is_empty
    assert outcome.bench is not None


def test_copies_that_draft_no_faster_than_the_model_are_left_out(
    make_request: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "time_few_steps", lambda setting: replace(SLOW, copies_step=3.5))
    request, listener = make_request(trials=1, timeout_seconds=LONG, precision="auto"), Listener()
    outcome = run_search(request, listener)
    assert {draft.precision.is_same for draft in engine.drafts} == {True}
    assert any("copies are left out: drafting from them takes 3.5 times" in notice for notice in listener.notices)
    assert run_search(request, Listener()).skip_config == outcome.skip_config


def test_a_few_steps_are_timed_on_any_runner(make_request: Any) -> None:
    for fields in ({"precision": "auto"}, {"runner": "reference"}, {"strategy": StrategyName.UNIFORM}):
        setting = open_setup(make_request(timeout_seconds=LONG, **fields), Listener())
        timed = time_few_steps(setting)
        assert timed.costs.decode_step > 0
        assert timed.costs.prefill_token > 0
        assert (timed.costs.row > 0) == (setting.request.strategy is StrategyName.STAGED)
        assert (timed.copies_step is not None) == setting.space.is_joint


def test_a_dry_run_says_what_a_search_on_a_slow_machine_would_give_up(
    make_request: Any, slow: list[SearchSetup]
) -> None:
    listener = Listener()
    request = make_request(trials=None, timeout_seconds=SHORT, max_new_tokens=64, num_prompts=20)
    plan = plan_search(request, listener)
    test = next(text for name, text, _ in plan.stages if name == "test")
    assert test == "the winner alone on 8 prompts, once"
    assert any("time to test on about 8 of 10 prompts" in notice for notice in listener.notices)
    assert not request.out.exists()
    with pytest.raises(BudgetError, match="too short"):
        plan_search(make_request(trials=None, timeout_seconds=5.0), listener)


def test_a_search_interrupted_in_its_test_tests_the_same_winner_when_it_is_resumed(
    make_request: Any, engine: ScriptedEngine, clock: FakeClock
) -> None:
    request, listener = make_request(trials=3, timeout_seconds=LONG), Listener()

    def script(draft: Draft, item: WorkItem) -> tuple[float, float, str]:
        skipped = draft.skip_set.num_skipped
        return 1.0, 1.0 + 0.1 * (8 - skipped if "finalists" in listener.stage_names else skipped), "identical"

    def interrupt(measured: int) -> None:
        if (request.out / "test.jsonl").exists():
            clock.now += 2 * LONG
            raise KeyboardInterrupt

    engine.script, engine.before_block = script, interrupt
    best_of_trials = run_search(request, listener).skip_config
    (tested,) = {row["method"] for row in read_rows(request.out / "test.jsonl") if is_winners(row["method"])}
    engine.before_block = lambda measured: None
    outcome = run_search(request, Listener())
    assert outcome.bench is not None
    assert {run.method for run in outcome.bench.runs if is_winners(run.method)} == {tested}
    search = outcome.skip_config.provenance["search"]
    assert search["test_measurements"] == 1
    assert search["selection_speedup"] is not None
    assert outcome.skip_config.skip_set() != best_of_trials.skip_set()


def is_winners(method: str) -> bool:
    return method.startswith("self-speculative:")
