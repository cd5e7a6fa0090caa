"""Results say where and when each run was measured, wherever the search goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from selfspec_tune import provenance
from selfspec_tune.errors import FileFormatError
from selfspec_tune.reporting import Candidate
from selfspec_tune.results import BenchResult, StudyConfig
from selfspec_tune.search import run as run_module
from selfspec_tune.search import run_search
from tests.search_kit import Listener, ScriptedEngine, read_rows, steady

Move = Callable[[], None]


class Crash(Exception):
    """The process dies."""


@pytest.fixture
def move(monkeypatch: pytest.MonkeyPatch) -> Move:
    """From then on this is another machine with another torch."""
    real = provenance.package_version

    def go() -> None:
        monkeypatch.setattr(provenance, "cpu_model", lambda: "Other CPU")
        monkeypatch.setattr(provenance, "package_version", lambda name: "0.0.1" if name == "torch" else real(name))

    return go


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """Every draft is as fast as every other, so the first one wins again and again."""
    return ScriptedEngine(steady(1.2)).install(monkeypatch)


def elsewhere(listener: Listener) -> list[str]:
    return [notice for notice in listener.notices if "under other conditions" in notice]


def test_a_search_in_one_go_has_one_session(make_request: Any, engine: ScriptedEngine) -> None:
    listener = Listener()
    outcome = run_search(make_request(), listener)
    assert outcome.bench is not None
    (session,) = outcome.bench.provenance["sessions"]
    assert (session["session"], session["trials"], session["runs"]) == (1, 3, len(outcome.bench.runs))
    assert session["started"] == outcome.skip_config.provenance["created"]
    assert {"cpu", "threads", "CPU quota", "torch", "transformers", "selfspec-tune", "load_average"} <= session.keys()
    assert {row["session"] for row in read_rows(outcome.out / "trials.jsonl")} == {1}
    assert elsewhere(listener) == []


def test_going_on_elsewhere_is_told_and_does_not_move_what_was_measured_before(
    make_request: Any, engine: ScriptedEngine, move: Move
) -> None:
    first = run_search(make_request(trials=2), Listener())
    assert first.bench is not None
    move()
    listener = Listener()
    outcome = run_search(make_request(trials=4), listener)
    bench, here = outcome.bench, first.bench.provenance
    assert bench is not None
    assert bench.runs == first.bench.runs
    for found in (bench.provenance, outcome.skip_config.provenance):
        assert {name: found[name] for name in ("hardware", "packages", "created")} == {
            name: here[name] for name in ("hardware", "packages", "created")
        }
        cpus = [session["cpu"] for session in found["sessions"]]
        assert cpus == [here["hardware"]["cpu"], "Other CPU"]
        assert [session["torch"] for session in found["sessions"]] == [here["packages"]["torch"], "0.0.1"]
        assert [session["trials"] for session in found["sessions"]] == [2, 2]
        assert [session["runs"] for session in found["sessions"]] == [len(bench.runs), 0]
    (told,) = elsewhere(listener)
    assert f"cpu was {here['hardware']['cpu']}, is Other CPU" in told
    assert f"torch was {here['packages']['torch']}, is 0.0.1" in told


def test_a_test_of_two_machines_lists_both_and_is_of_the_later_one(
    make_request: Any, engine: ScriptedEngine, move: Move
) -> None:
    request = make_request()

    def die(measured: int) -> None:
        if (request.out / "test.jsonl").exists() and len(read_rows(request.out / "test.jsonl")) >= 4:
            raise Crash

    engine.before_block = die
    with pytest.raises(Crash):
        run_search(request, Listener())
    engine.before_block = lambda measured: None
    move()
    run_search(request, Listener())
    bench = BenchResult.load(request.out / "bench.json")
    assert bench.provenance["hardware"]["cpu"] == "Other CPU"
    counts = Counter(run.session for run in bench.runs)
    assert set(counts) == {1, 2}
    assert {session["session"]: session["runs"] for session in bench.provenance["sessions"]} == counts


def test_a_best_so_far_lists_the_sessions_too(make_request: Any, engine: ScriptedEngine, move: Move) -> None:
    def stop(candidate: Candidate) -> None:
        if candidate.number == len(read_rows(make_request().out / "sessions.jsonl")):
            raise KeyboardInterrupt

    run_search(make_request(trials=5), Listener(on_trial=stop))
    move()
    found = run_search(make_request(trials=5), Listener(on_trial=stop)).skip_config.provenance
    assert [session["cpu"] for session in found["sessions"]][1] == "Other CPU"
    assert [session["trials"] for session in found["sessions"]] == [2, 1]


def test_other_threads_are_told(make_request: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_search(make_request(trials=1), Listener())
    real = provenance.hardware
    monkeypatch.setattr(provenance, "hardware", lambda **given: {**real(**given), "threads": 77})
    monkeypatch.setattr(run_module, "cpu_quota", lambda: 1.5)
    listener = Listener()
    run_search(make_request(trials=2), listener)
    (told,) = elsewhere(listener)
    assert ", is 77" in told
    assert "CPU quota was none, is 1.5" in told


def made_old(folder: Path) -> None:
    """As a version left it that kept neither sessions nor what decides the tokens."""
    (folder / "sessions.jsonl").unlink()
    config = StudyConfig.load(folder / "study.toml").to_dict()
    new = {"tokenizer", "chat_template", "eos_token_ids", "prompt_tokens"}
    kept = {name: value for name, value in config.items() if name not in new and value is not None}
    (folder / "study.toml").write_text(tomli_w.dumps(kept))
    for name in ("trials.jsonl", "selection.jsonl", "test.jsonl"):
        rows = [{key: value for key, value in row.items() if key != "session"} for row in read_rows(folder / name)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_old_study_goes_on_with_the_session_that_its_result_states(
    make_request: Any, engine: ScriptedEngine, move: Move
) -> None:
    first = run_search(make_request(trials=2), Listener())
    assert first.bench is not None
    made_old(first.out)
    move()
    listener = Listener()
    found = run_search(make_request(trials=3), listener).skip_config.provenance
    assert found["hardware"] == first.bench.provenance["hardware"]
    assert [session["cpu"] for session in found["sessions"]][1] == "Other CPU"
    assert [session["runs"] for session in found["sessions"]] == [len(first.bench.runs), 0]
    assert len(elsewhere(listener)) == 1
    assert StudyConfig.load(first.out / "study.toml").prompt_tokens is not None


def test_an_old_study_without_a_result_is_of_a_place_that_nobody_knows(
    make_request: Any, engine: ScriptedEngine
) -> None:
    first = run_search(make_request(trials=2), Listener())
    made_old(first.out)
    (first.out / "skip.json").unlink()
    listener = Listener()
    outcome = run_search(make_request(trials=3), listener)
    assert outcome.bench is not None
    assert "hardware" not in outcome.bench.provenance
    assert outcome.bench.provenance["model"]["fingerprint"] == outcome.bench.model.fingerprint
    assert "cpu" not in outcome.bench.provenance["sessions"][0]
    assert any("that it was here cannot be checked" in notice for notice in listener.notices)


def test_a_lost_list_of_sessions_moves_no_run_to_this_one(make_request: Any, engine: ScriptedEngine) -> None:
    for trials in (1, 2):
        out = run_search(make_request(trials=trials), Listener()).out
    (out / "sessions.jsonl").unlink()
    listener = Listener()
    found = run_search(make_request(trials=3), listener).skip_config.provenance
    assert ["cpu" in session for session in found["sessions"]] == [False, False, True]
    assert [session["trials"] for session in found["sessions"]] == [1, 1, 1]
    assert "hardware" not in found
    assert any("that it was here cannot be checked" in notice for notice in listener.notices)


def test_a_damaged_list_of_sessions_is_named(make_request: Any, engine: ScriptedEngine) -> None:
    outcome = run_search(make_request(trials=1), Listener())
    (outcome.out / "sessions.jsonl").write_text("[1]\n")
    with pytest.raises(FileFormatError, match=r"sessions\.jsonl holds a line that is no session"):
        run_search(make_request(trials=2), Listener())
