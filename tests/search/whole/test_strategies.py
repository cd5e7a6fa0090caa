"""Every way to search from its beginning to its end, and several side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.bench import run_comparison
from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import CompareRequest, DraftOptions, SearchRequest, StrategyName
from selfspec_tune.results import BenchResult, SkipConfig, StudyConfig
from selfspec_tune.search import run_search
from selfspec_tune.search import strategies as strategies_module
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.strategies import STRATEGIES, ScoredBy, strategy_for
from selfspec_tune.search.study_files import Incumbent, Trajectory, incumbent_at
from tests.search_kit import Listener, ScriptedEngine, read_rows

SPACE = SearchSpace.of_skips(Draft(SkipSet.empty(14)))


def test_every_strategy_is_known_by_name() -> None:
    assert set(STRATEGIES) == set(StrategyName)


@pytest.mark.parametrize("name", StrategyName)
def test_every_strategy_ends_with_a_measured_skip_set(
    make_request: Any, engine: ScriptedEngine, name: StrategyName
) -> None:
    listener = Listener()
    outcome = run_search(make_request(strategy=name, trials=6), listener)
    assert len(listener.trials) == 6
    assert outcome.bench is not None
    assert StudyConfig.load(outcome.out / "study.toml").strategy == name
    config = SkipConfig.load(outcome.out / "skip.json")
    assert config.score.split == "test"
    assert config.skip_set().num_layers == 4
    incumbents = Trajectory(outcome.out / "trajectory.jsonl").read(4)
    assert incumbents[-1].stage == "selection"
    assert incumbents[-1].draft.skip_set == config.skip_set()
    if not STRATEGIES[name].has_proxy:
        assert {candidate.origin for candidate in listener.trials} == {name.value}
        assert "importance" not in listener.stage_names


def test_another_strategy_does_not_go_on_in_a_studys_folder(make_request: Any, engine: ScriptedEngine) -> None:
    run_search(make_request(strategy=StrategyName.RANDOM, trials=2), Listener())
    with pytest.raises(UsageError, match="strategy random → tpe"):
        run_search(make_request(strategy=StrategyName.TPE, trials=2), Listener())


def test_the_papers_search_measures_its_own_time_alone(make_request: Any, engine: ScriptedEngine) -> None:
    outcome = run_search(make_request(strategy=StrategyName.SELF_SD, trials=2), Listener())
    assert not (outcome.out / "trials.jsonl").exists()
    draft = SkipConfig.load(outcome.out / "skip.json").draft
    assert (draft.policy, draft.max_draft_tokens, draft.exit_threshold) == ("adaptive", 12, 0.6)
    assert draft.sources == ()


def test_swift_tries_sets_of_one_size_but_for_every_25th() -> None:
    swift = STRATEGIES[StrategyName.SWIFT]
    drafts = list(islice(swift.starts(SPACE, 3), 40))
    assert {draft.skip_set.num_skipped for draft in drafts} == {round(0.45 * 28)}
    assert len(set(drafts)) > 35
    assert swift.turn == 25
    assert swift.scored_by is ScoredBy.MATCHES


def test_uniform_tries_evenly_spaced_layers_of_either_kind_and_both() -> None:
    drafts = list(STRATEGIES[StrategyName.UNIFORM].starts(SPACE, 0))
    kinds = {(bool(d.skip_set.attention), bool(d.skip_set.mlp)) for d in drafts}
    assert kinds == {(True, True), (True, False), (False, True)}
    assert max(draft.skip_set.num_skipped for draft in drafts) == 2 * 12


@pytest.mark.parametrize("name", [StrategyName.UNIFORM, StrategyName.SWIFT])
def test_a_resumed_strategy_goes_on_with_the_next_of_its_own_drafts(
    make_request: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, name: StrategyName
) -> None:
    many = STRATEGIES[name].starts(SearchSpace.of_skips(Draft(SkipSet.empty(4))), 0)
    own = list(dict.fromkeys(draft.skip_set for draft in islice(many, 40)))[:5]
    monkeypatch.setitem(STRATEGIES, name, replace(STRATEGIES[name], turn=None))
    run_search(make_request(strategy=name, trials=2), Listener())
    listener = Listener()
    run_search(make_request(strategy=name, trials=5), listener)
    assert [candidate.draft.skip_set for candidate in listener.trials] == own


def test_ctrl_c_before_anything_was_found_keeps_nothing_and_says_no_more(
    make_request: Any, engine: ScriptedEngine
) -> None:
    def stop(measured: int) -> None:
        raise KeyboardInterrupt

    engine.before_block = stop
    request = make_request(strategy=StrategyName.RANDOM, trials=3)
    with pytest.raises(KeyboardInterrupt):
        run_search(request, Listener())
    assert not (request.out / "skip.json").exists()
    engine.before_block = lambda measured: None
    assert run_search(request, Listener()).skip_config.score.verdict == "faster"


def test_a_score_that_is_no_speedup_is_not_shown_as_one_later(make_request: Any, engine: ScriptedEngine) -> None:
    run_search(make_request(strategy=StrategyName.SELF_SD, trials=2), Listener())
    listener = Listener()
    run_search(make_request(strategy=StrategyName.SELF_SD, trials=3), listener)
    assert [candidate.speedup for candidate in listener.trials] == [None] * 3
    assert {candidate.origin for candidate in listener.trials} == {"self-sd"}


def test_a_strategy_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs cmaes, which is not installed: pip install 'selfspec-tune\[search\]'"):
        strategy_for(StrategyName.CMAES)
    assert strategy_for(StrategyName.STAGED) is STRATEGIES[StrategyName.STAGED]


@pytest.mark.parametrize("name", [StrategyName.SELF_SD, StrategyName.SWIFT])
def test_other_projects_search_skips_alone(name: StrategyName) -> None:
    options = STRATEGIES[name].options(DraftOptions())
    assert (options.precision, options.ngram, options.vocabulary) == ("same", False, "full")


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "random", "uniform"])
def test_without_predictions_drafts_end_by_a_threshold_unless_told_otherwise(name: str) -> None:
    options = STRATEGIES[StrategyName(name)].options
    assert options(DraftOptions()).policy_kinds == (PolicyKind.THRESHOLD,)
    assert options(DraftOptions("cost-aware")).policy == "cost-aware"
    assert STRATEGIES[StrategyName.STAGED].options(DraftOptions()) == DraftOptions()


# Incumbents


def test_what_a_search_would_have_given_is_the_last_before(tmp_path: Path) -> None:
    trajectory = Trajectory(tmp_path / "trajectory.jsonl")
    assert trajectory.read(4) == []
    drafts = [Draft(SkipSet(4, (1,))), Draft(SkipSet(4, (2,), (3,)))]
    for seconds, draft in zip((10.0, 60.0), drafts, strict=True):
        trajectory.note(Incumbent(seconds, draft, 1.1, "proxy"))
    incumbents = trajectory.read(4)
    assert [incumbent.draft for incumbent in incumbents] == drafts
    assert incumbent_at(incumbents, 9) is None
    assert incumbent_at(incumbents, 10) == incumbents[0]
    assert incumbent_at(incumbents, 1e6) == incumbents[1]


# Side by side


@pytest.fixture
def compared(make_request: Any, engine: ScriptedEngine) -> Callable[..., CompareRequest]:
    def make(*names: StrategyName, **fields: Any) -> CompareRequest:
        request: SearchRequest = make_request(trials=3)
        return CompareRequest(request, names or (StrategyName.STAGED, StrategyName.RANDOM), **fields)

    return make


def test_strategies_are_measured_in_one_bench_on_unread_prompts(compared: Callable[..., CompareRequest]) -> None:
    request = compared(early_seconds=(1e6,))
    comparison = run_comparison(request, Listener())
    out = request.search.out
    assert [entry.strategy for entry in comparison.entries] == ["staged", "staged", "random"]
    bench = BenchResult.load(out / "bench.json")
    assert {entry.method for entry in comparison.entries} <= {method.id for method in bench.methods}
    assert bench.split == "test"
    assert not bench.in_sample
    value = json.loads((out / "compare.json").read_text())
    assert value["schema"] == "selfspec-tune/compare"
    for name in ("staged", "random"):
        assert value["curves"][name]
        assert all(seconds >= 0 and speedup > 0 for seconds, speedup in value["curves"][name])


def test_a_comparison_resumes(compared: Callable[..., CompareRequest], engine: ScriptedEngine) -> None:
    request = compared()
    first = run_comparison(request, Listener())
    measured = len(engine.measured)
    again = run_comparison(request, Listener())
    assert len(engine.measured) == measured
    assert [entry.draft for entry in again.entries] == [entry.draft for entry in first.entries]
    assert len(read_rows(request.search.out / "staged" / "trajectory.jsonl")) > 0


def test_any_order_of_strategies_can_be_judged(make_request: Any, engine: ScriptedEngine) -> None:
    # What is timed for self-sd, the whole vocabulary, does not tell what the others' drafts cost.
    search = make_request(trials=3, vocabulary="auto")
    comparison = run_comparison(CompareRequest(search, (StrategyName.SELF_SD, StrategyName.STAGED)), Listener())
    assert all(comparison.curves.values())


def test_several_searches_and_a_single_one_never_share_a_folder(compared: Callable[..., CompareRequest]) -> None:
    request = compared()
    run_comparison(request, Listener())
    with pytest.raises(UsageError, match="results of several searches"):
        run_search(request.search, Listener())
    single = replace(request.search, out=request.search.out / "staged")
    with pytest.raises(UsageError, match="holds a single search"):
        run_comparison(replace(request, search=single), Listener())


def test_early_is_refused_where_it_would_be_ignored(make_request: Any) -> None:
    with pytest.raises(UsageError, match="`early` measures what staged had found"):
        CompareRequest(make_request(), (StrategyName.TPE, StrategyName.GP), early_seconds=(5.0,))


@pytest.mark.parametrize("names", [(), (StrategyName.TPE,), (StrategyName.TPE, StrategyName.TPE)])
def test_one_strategy_is_nothing_to_compare(names: tuple[StrategyName, ...], make_request: Any) -> None:
    with pytest.raises(UsageError, match="expected at least two different ones"):
        CompareRequest(replace(make_request()), names)
