from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.errors import UsageError
from selfspec_tune.reporting import Candidate
from selfspec_tune.results import SkipConfig
from selfspec_tune.search import budget, run_search
from selfspec_tune.search import run as run_module
from selfspec_tune.search.stages import finalists, ranker
from selfspec_tune.search.study import StudyFolder
from tests.search_kit import Listener, ScriptedEngine, prompt_file, read_rows, search_request


def test_ctrl_c_during_the_trials_keeps_the_best_so_far(make_request: Any, engine: ScriptedEngine) -> None:
    def stop_after_two(candidate: Candidate) -> None:
        if candidate.number == 1:
            raise KeyboardInterrupt

    listener = Listener(on_trial=stop_after_two)
    outcome = run_search(make_request(trials=5), listener)
    assert outcome.interrupted
    assert len(listener.trials) == 2
    config = SkipConfig.load(outcome.out / "skip.json")
    best = max(listener.trials, key=lambda candidate: candidate.draft.skip_set.num_skipped)
    assert config.skip_set() == best.draft.skip_set
    assert config.score.verdict in {"undecided", "not_faster", "faster"}
    if outcome.bench is None:
        assert config.score.verdict == "undecided"
        assert config.score.end_to_end_speedup is None


def test_ctrl_c_before_any_trial_ended_keeps_the_best_prediction(make_request: Any, engine: ScriptedEngine) -> None:
    def interrupt(measured: int) -> None:
        raise KeyboardInterrupt

    engine.before_block = interrupt
    outcome = run_search(make_request(), Listener())
    assert outcome.interrupted
    predicted = json.loads((outcome.out / "ranking.json").read_text())["candidates"][0]
    assert outcome.skip_config.skip_set().to_dict() == predicted["skip"]


def test_an_interrupted_search_goes_on_with_the_same_command(make_request: Any, engine: ScriptedEngine) -> None:
    def stop(candidate: Candidate) -> None:
        raise KeyboardInterrupt

    request = make_request(trials=4)
    run_search(request, Listener(on_trial=stop))
    first = read_rows(request.out / "trials.jsonl")
    listener = Listener()
    outcome = run_search(request, listener)
    assert not outcome.interrupted
    assert outcome.bench is not None
    assert [candidate.number for candidate in listener.trials] == [0, 1, 2, 3]
    assert read_rows(request.out / "trials.jsonl")[: len(first)] == first
    assert {row["trial"] for row in read_rows(request.out / "trials.jsonl")} == {0, 1, 2, 3}


def test_a_resumed_search_keeps_the_runner_it_was_begun_with(make_request: Any, engine: ScriptedEngine) -> None:
    def stop(candidate: Candidate) -> None:
        raise KeyboardInterrupt

    run_search(make_request(runner="reference"), Listener(on_trial=stop))
    listener = Listener()
    assert not run_search(make_request(runner="auto"), listener).interrupted
    assert any("reference runner" in notice for notice in listener.notices)
    with pytest.raises(UsageError, match="runner reference → fast"):
        run_search(make_request(runner="fast"), Listener())


def test_an_interrupted_search_says_which_prompts_it_read(make_request: Any, engine: ScriptedEngine) -> None:
    def stop(candidate: Candidate) -> None:
        raise KeyboardInterrupt

    outcome = run_search(make_request(), Listener(on_trial=stop))
    assert len(outcome.skip_config.prompt_hashes("calibration")) == 4


def test_ctrl_c_while_prolonging_a_finished_search_keeps_its_scored_file(
    make_request: Any, engine: ScriptedEngine
) -> None:
    finished = run_search(make_request(trials=2), Listener())

    def stop(candidate: Candidate) -> None:
        if candidate.number == 2:
            raise KeyboardInterrupt

    run_search(make_request(trials=5), Listener(on_trial=stop))
    assert SkipConfig.load(finished.out / "skip.json").score.num_prompts == 8


def test_a_larger_budget_goes_on_where_the_search_ended(make_request: Any, engine: ScriptedEngine) -> None:
    run_search(make_request(trials=2), Listener())
    first = read_rows(make_request().out / "trials.jsonl")
    listener = Listener()
    outcome = run_search(make_request(trials=4), listener)
    assert [candidate.number for candidate in listener.trials] == [0, 1, 2, 3]
    assert outcome.skip_config.provenance["search"]["trials"] == 4
    assert read_rows(outcome.out / "trials.jsonl")[: len(first)] == first


@pytest.mark.parametrize("file", ["selection.jsonl", "test.jsonl"])
def test_ctrl_c_after_the_trials_keeps_the_best_so_far_and_goes_on_later(
    make_request: Any, engine: ScriptedEngine, file: str
) -> None:
    request = make_request()

    def interrupt(measured: int) -> None:
        if (request.out / file).exists():
            raise KeyboardInterrupt

    engine.before_block = interrupt
    outcome = run_search(request, Listener())
    assert outcome.interrupted
    assert outcome.bench is None
    score = SkipConfig.load(request.out / "skip.json").score
    assert (score.verdict, score.end_to_end_speedup, score.num_prompts) == ("undecided", None, 0)
    begun = read_rows(request.out / file)
    engine.before_block = lambda measured: None
    assert run_search(request, Listener()).skip_config.score.verdict == "faster"
    assert read_rows(request.out / file)[: len(begun)] == begun


class Crash(Exception):
    """Something dies between two stages."""


def crash(*_: Any, **__: Any) -> Any:
    raise Crash


@pytest.mark.parametrize(
    ("module", "broken", "num_ended"),
    [
        (run_module, "trial_items", 0),
        (ranker, "write_ranking", 0),
        (finalists, "Contest", 3),
        (finalists, "bench_result", 3),
        (run_module, "skip_config", 3),
    ],
)
def test_a_search_that_crashed_between_stages_goes_on_with_its_trials(
    make_request: Any,
    engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    broken: str,
    num_ended: int,
) -> None:
    request = make_request()
    with monkeypatch.context() as patch:
        patch.setattr(module, broken, crash)
        with pytest.raises(Crash):
            run_search(request, Listener())
    files = [request.out / name for name in ("trials.jsonl", "selection.jsonl", "test.jsonl")]
    before = [file.read_bytes() if file.exists() else b"" for file in files]
    assert len({row["trial"] for row in read_rows(files[0])} if before[0] else set()) == num_ended
    listener = Listener()
    outcome = run_search(request, listener)
    assert [candidate.number for candidate in listener.trials] == [0, 1, 2]
    assert outcome.skip_config.score.verdict == "faster"
    for file, content in zip(files, before, strict=True):
        assert file.read_bytes() == content or not content


def test_a_search_killed_in_the_middle_of_the_test_measures_only_what_is_missing(
    make_request: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "NUM_REFERENCE_ITEMS", 4)
    request = make_request()

    def die(measured: int) -> None:
        if (request.out / "test.jsonl").exists() and len(read_rows(request.out / "test.jsonl")) >= 14:
            raise Crash

    engine.before_block = die
    with pytest.raises(Crash):
        run_search(request, Listener())
    begun = read_rows(request.out / "test.jsonl")
    # four prompts with both references, two with the winner alone
    assert len(begun) == 4 * 3 + 2
    engine.before_block = lambda measured: None
    run_search(request, Listener())
    rows = read_rows(request.out / "test.jsonl")
    assert rows[: len(begun)] == begun
    assert len(rows) == 4 * 3 + 4


def test_time_spent_before_an_interruption_counts(make_request: Any, engine: ScriptedEngine) -> None:
    run_search(make_request(trials=1), Listener())
    folder = StudyFolder(make_request().out)
    spent = folder.spent_seconds
    assert spent > 0
    run_search(make_request(trials=2), Listener())
    assert folder.spent_seconds >= spent


def test_a_prompt_file_that_changed_since_is_noticed(tmp_path: Path, model: Path, engine: ScriptedEngine) -> None:
    file = tmp_path / "mine.jsonl"
    request = search_request(tmp_path / "study", model, prompt_file(file))
    run_search(request, Listener())
    file.write_text(file.read_text().replace("tell of", "write of"))
    with pytest.raises(UsageError, match="prompts_hash"):
        run_search(search_request(tmp_path / "study", model, str(file), trials=4), Listener())
