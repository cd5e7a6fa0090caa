from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.draft import LONGEST_SEARCHED, Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import BudgetError, FileFormatError, PromptError, UsageError
from selfspec_tune.intervals import verdict
from selfspec_tune.measure.arms import contender_id
from selfspec_tune.measure.contenders import prompt_options
from selfspec_tune.measure.workload import WorkItem
from selfspec_tune.prompts import load_prompts
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import BenchRequest, DraftOptions, ExtraMemory, Sampling, SearchRequest
from selfspec_tune.results import BenchResult, SkipConfig, StudyConfig
from selfspec_tune.search import SearchOutcome, budget, plan_search, run_search
from selfspec_tune.search import run as run_module
from selfspec_tune.search.stages.ranking import read_ranking
from selfspec_tune.search.study import StudyFolder
from tests import kit
from tests.search_kit import Listener, ScriptedEngine, read_rows, search_request, steady, without_caches


def contents(folder: Path) -> dict[str, bytes]:
    """What a resumed search must not touch."""
    names = ("skip.json", "bench.json", "trials.jsonl", "selection.jsonl", "test.jsonl", "journal.log", "ranking.json")
    return {name: (folder / name).read_bytes() for name in names}


def hashes_in(file: Path) -> set[str]:
    return {row["prompt_hash"] for row in read_rows(file)}


class Finished:
    """One real search, run once for the tests that only look at what it left."""

    def __init__(self, folder: Path, model: Path, source: str) -> None:
        self.request = search_request(folder, model, source, vocabulary="auto")
        self.listener = Listener()
        with pytest.MonkeyPatch.context() as patch:
            without_caches(patch)
            self.outcome = run_search(self.request, self.listener)
        self.folder = folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path, source: str) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished") / "study", model, source)


# A whole search, really measured


def test_a_search_goes_through_its_stages_in_order(finished: Finished) -> None:
    assert finished.listener.stage_names == [
        "load",
        "calibrate",
        "importance",
        "costs",
        "proxy",
        "trials",
        "finalists",
        "test",
    ]
    assert len(finished.listener.trials) == 3
    assert any("layers" in notice for notice in finished.listener.notices)


def test_a_search_leaves_three_valid_files(finished: Finished) -> None:
    config = SkipConfig.load(finished.folder / "skip.json")
    bench = BenchResult.load(finished.folder / "bench.json")
    study = StudyConfig.load(finished.folder / "study.toml")
    assert config == finished.outcome.skip_config
    assert bench.to_dict() == (finished.outcome.bench or bench).to_dict()
    assert config.skip_set().num_layers == 4
    assert study.model_fingerprint == config.model.fingerprint == bench.model.fingerprint
    assert (study.trials, study.max_new_tokens, study.num_prompts) == (3, 16, 16)
    assert study.dtype == "float32"


def test_a_search_tells_what_its_test_reached_of_the_memorys_limit(finished: Finished) -> None:
    bench, score = finished.outcome.bench, finished.outcome.skip_config.score
    assert bench is not None
    assert bench.memory_limit is not None
    (method,) = [method for method in bench.methods if method.name == "self-speculative"]
    assert score.of_memory_limit == method.of_memory_limit is not None
    assert score.decode_tokens_per_second == method.decode_tokens_per_second is not None
    limits = [run.limit_seconds for run in bench.runs]
    assert None not in limits
    selection = read_rows(finished.folder / "selection.jsonl")
    assert all(row["plain_bytes"] is None for row in selection)  # nobody reads a share there


def test_a_searchs_files_carry_schema_and_version(finished: Finished) -> None:
    for name, schema in (("skip.json", "selfspec-tune/skip-config"), ("bench.json", "selfspec-tune/bench")):
        value = json.loads((finished.folder / name).read_text())
        assert (value["schema"], value["version"]) == (schema, 1)


def test_the_splits_are_disjoint_and_every_hash_is_recorded(finished: Finished, source: str) -> None:
    prompts = finished.outcome.skip_config.provenance["prompts"]
    splits = [set(prompts[name]) for name in ("calibration", "selection", "test")]
    assert [len(split) for split in splits] == [4, 4, 8]
    assert len(set.union(*splits)) == 16
    assert set.union(*splits) <= {prompt.hash for prompt in load_prompts(source)}
    assert prompts["source"] == source
    assert prompts["max_new_tokens"] == 16


def test_each_stage_measures_on_its_own_split_only(finished: Finished) -> None:
    prompts = finished.outcome.skip_config.provenance["prompts"]
    assert hashes_in(finished.folder / "trials.jsonl") <= set(prompts["calibration"])
    assert hashes_in(finished.folder / "selection.jsonl") == set(prompts["selection"])
    assert hashes_in(finished.folder / "test.jsonl") == set(prompts["test"])
    assert finished.outcome.bench is not None
    assert {run.prompt_hash for run in finished.outcome.bench.runs} == set(prompts["test"])
    assert not finished.outcome.bench.in_sample
    assert finished.outcome.bench.split == finished.outcome.skip_config.score.split == "test"


def test_the_winner_alone_is_measured_on_the_test_split_and_once(finished: Finished) -> None:
    rows = read_rows(finished.folder / "test.jsonl")
    winners = [row for row in rows if row["method"].startswith("self-speculative")]
    assert len({row["method"] for row in winners}) == 1
    assert len(winners) == len({row["prompt_id"] for row in winners}) == 8
    assert {row["method"] for row in rows} - {winners[0]["method"]} == {"a-a", "hf-generate"}


def test_in_float32_nothing_that_a_search_measures_is_lossy(finished: Finished) -> None:
    for name in ("trials.jsonl", "selection.jsonl", "test.jsonl"):
        assert {row["lossless"] for row in read_rows(finished.folder / name)} == {"identical"}


def test_the_verdict_says_what_the_interval_allows(finished: Finished) -> None:
    config, bench = finished.outcome.skip_config, finished.outcome.bench
    assert bench is not None
    assert config.score.end_to_end_speedup is not None
    if bench.verdict == "withheld":
        assert config.score.verdict == "undecided"
        assert config.score.withheld_because
    else:
        assert config.score.verdict == bench.verdict == verdict(config.score.end_to_end_speedup)
    assert config.score.num_prompts == 8


def test_the_file_says_how_the_set_was_found(finished: Finished) -> None:
    found = finished.outcome.skip_config.provenance["search"]
    assert (found["trials"], found["test_measurements"]) == (3, 1)
    assert found["seconds"] > 0
    assert finished.outcome.skip_config.draft.policy == "threshold"


def test_the_same_command_again_measures_nothing(finished: Finished) -> None:
    before = contents(finished.folder)
    listener = Listener()
    again = run_search(finished.request, listener)
    assert contents(finished.folder) == before
    assert again.skip_config.to_dict() == finished.outcome.skip_config.to_dict()
    assert again.bench is not None
    assert not again.interrupted
    assert "trials" not in listener.stage_names or len(listener.trials) == 3


def test_another_configuration_in_the_same_folder_is_refused(finished: Finished, model: Path, source: str) -> None:
    request = search_request(finished.folder, model, source, temperature=0.5, seed=9)
    with pytest.raises(UsageError) as caught:
        run_search(request, SilentReporter())
    message = str(caught.value)
    assert "another configuration" in message
    assert "temperature 0.0 → 0.5" in message
    assert "seed 0 → 9" in message
    assert "`out`" in message
    assert StudyConfig.load(finished.folder / "study.toml").temperature == 0.0


def test_another_model_in_the_same_folder_is_refused(finished: Finished, tiny_qwen2_dir: Path, source: str) -> None:
    with pytest.raises(UsageError, match="model_fingerprint"):
        run_search(search_request(finished.folder, tiny_qwen2_dir, source), SilentReporter())


def test_two_searches_at_once_in_one_folder_are_refused(finished: Finished) -> None:
    with (
        StudyFolder(finished.folder).locked(),
        pytest.raises(UsageError, match="in use by another search"),
    ):
        run_search(finished.request, SilentReporter())


def test_a_corrupt_study_file_is_named(finished: Finished, tmp_path: Path, model: Path, source: str) -> None:
    folder = tmp_path / "corrupt"
    folder.mkdir()
    (folder / "study.toml").write_text("schema = [")
    with pytest.raises(FileFormatError, match=r"study\.toml is not valid TOML"):
        run_search(search_request(folder, model, source), SilentReporter())


# Verdicts, scripted


def run_scripted(request: SearchRequest, listener: Listener | None = None) -> SearchOutcome:
    return run_search(request, listener or Listener())


def test_what_the_steps_cost_is_counted_on_from_the_trials_on(
    make_request: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    check, trials = run_module.make_check, run_module.run_trials

    def before(workload: Any, items: Any) -> Any:
        asked["before"] = workload
        return check(workload, items)

    def after(session: Any, *rest: Any) -> None:
        asked["after"] = session.workload
        trials(session, *rest)

    monkeypatch.setattr(run_module, "make_check", before)
    monkeypatch.setattr(run_module, "run_trials", after)
    out = run_scripted(make_request()).out
    assert asked["before"].costs is None
    assert asked["after"].costs == read_ranking(out / "ranking.json", 4).costs


def test_a_faster_set_is_called_faster(make_request: Any, engine: ScriptedEngine) -> None:
    outcome = run_scripted(make_request())
    score = outcome.skip_config.score
    assert score.verdict == "faster"
    assert score.end_to_end_speedup is not None
    skipped = outcome.skip_config.skip_set().num_skipped
    assert score.end_to_end_speedup.value == pytest.approx(1.0 + 0.1 * skipped)
    assert outcome.bench is not None
    assert outcome.bench.baseline_vs_generate == pytest.approx(2.0)


def test_when_nothing_beats_plain_decoding_the_file_says_so(make_request: Any, engine: ScriptedEngine) -> None:
    engine.script = steady(0.8)
    outcome = run_scripted(make_request())
    assert outcome.skip_config.score.verdict == "not_faster"
    assert SkipConfig.load(outcome.out / "skip.json").score.verdict == "not_faster"
    assert outcome.bench is not None
    assert outcome.bench.verdict == "not_faster"


def test_a_gain_that_may_be_a_loss_is_undecided(make_request: Any, engine: ScriptedEngine) -> None:
    engine.script = lambda draft, item: (1.0, 2.0 if int(item.id.split("/")[1].split("@")[0]) % 3 else 0.6, "identical")
    score = run_scripted(make_request()).skip_config.score
    assert score.end_to_end_speedup is not None
    assert score.end_to_end_speedup.low < 1.0 < score.end_to_end_speedup.value
    assert score.verdict == "undecided"
    assert score.withheld_because == []


def test_a_baseline_slower_than_generate_withholds_the_verdict(make_request: Any, engine: ScriptedEngine) -> None:
    engine.generate_ratio = 0.5
    outcome = run_scripted(make_request())
    assert outcome.bench is not None
    assert outcome.bench.verdict == "withheld"
    assert outcome.skip_config.score.verdict == "undecided"
    assert any("model.generate" in reason for reason in outcome.skip_config.score.withheld_because)


def test_a_winner_that_turns_out_lossy_carries_no_speedup(make_request: Any, engine: ScriptedEngine) -> None:
    engine.script = lambda draft, item: (1.0, 2.0, "identical" if "@" in item.id else "mismatch")
    outcome = run_scripted(make_request())
    score = outcome.skip_config.score
    assert (score.verdict, score.end_to_end_speedup, score.decode_speedup) == ("undecided", None, None)
    assert any("not lossless" in reason for reason in score.withheld_because)


def test_the_finalist_that_is_fastest_on_the_selection_split_wins(make_request: Any, engine: ScriptedEngine) -> None:
    listener = Listener()
    run_scripted(make_request(trials=4), listener)
    rows = read_rows(make_request().out / "selection.jsonl")
    speeds = {row["method"]: row["baseline"]["decode_seconds"] / row["candidate"]["decode_seconds"] for row in rows}
    tested = {row["method"] for row in read_rows(make_request().out / "test.jsonl")} & speeds.keys()
    assert len(speeds) == budget.NUM_FINALISTS
    assert [speeds[method] for method in tested] == [max(speeds.values())]
    assert len([notice for notice in listener.notices if notice.startswith("finalist")]) == budget.NUM_FINALISTS


@pytest.mark.parametrize(("on_code", "on_chat", "skips"), [(1.5, 1.4, True), (1.5, 0.8, False)])
def test_a_finalist_that_skips_must_be_surely_faster_than_one_that_does_not(
    make_request: Any, engine: ScriptedEngine, on_code: float, on_chat: float, skips: bool
) -> None:
    def script(draft: Draft, item: WorkItem) -> tuple[float, float, str]:
        speedup = on_code if item.prompt.task == "code" else on_chat
        return 1.0, 1.0 if draft.skip_set.is_empty else speedup, "identical"

    engine.script, listener = script, Listener()
    outcome = run_scripted(make_request(precision="int4"), listener)
    assert outcome.skip_config.skip_set().is_empty != skips
    told = [notice for notice in listener.notices if "the finalist that skips nothing" in notice]
    assert len(told) == (not skips)


def test_the_best_predicted_draft_is_a_finalist_however_its_trial_went(
    make_request: Any, engine: ScriptedEngine
) -> None:
    request = make_request(trials=8)
    engine.script = lambda draft, item: (
        1.0,
        1.0 / (1 + draft.skip_set.num_skipped) if "@" in item.id else 1.2,
        "identical",
    )
    run_scripted(request)
    candidates = read_ranking(request.out / "ranking.json", 4).candidates
    assert contender_id(candidates[0].draft) in {row["method"] for row in read_rows(request.out / "selection.jsonl")}


# Budgets and prompts that do not suffice


@pytest.mark.parametrize("fields", [{"trials": 0}, {"trials": -1}, {"timeout_seconds": 0.0}])
def test_a_zero_budget_is_refused(make_request: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(BudgetError) as caught:
        make_request(**fields)
    assert caught.value.exit_code == 2


def test_when_the_time_is_up_at_once_one_trial_is_still_measured(
    make_request: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget.Clock, "left", -1.0)
    outcome = run_scripted(make_request(trials=None, timeout_seconds=3600.0))
    assert outcome.skip_config.provenance["search"]["trials"] == 1
    assert outcome.bench is not None


def test_a_time_limit_that_cannot_hold_the_test_is_refused_and_can_be_raised(
    make_request: Any, engine: ScriptedEngine
) -> None:
    with pytest.raises(BudgetError, match=r"ms here; one trial and a test on 8 prompts, .* take about \d+ s"):
        run_search(make_request(timeout_seconds=0.001), Listener())
    assert run_scripted(make_request(timeout_seconds=3600.0)).bench is not None


def test_more_prompts_than_the_source_has_are_refused(make_request: Any) -> None:
    with pytest.raises(PromptError, match="21 prompts were asked for"):
        run_search(make_request(num_prompts=21), SilentReporter())


def test_too_few_prompts_to_split_are_refused(make_request: Any) -> None:
    with pytest.raises(PromptError) as caught:
        run_search(make_request(num_prompts=3), SilentReporter())
    assert caught.value.exit_code == 2


def test_answers_too_short_to_measure_on_are_refused(make_request: Any) -> None:
    with pytest.raises(BudgetError, match="too short to measure"):
        run_search(make_request(max_new_tokens=6), SilentReporter())


def test_a_prompt_longer_than_the_context_is_named(tmp_path: Path, source: str) -> None:
    small = kit.tiny_llama(tmp_path / "small", layers=4, context=96)
    with pytest.raises(PromptError, match=r"tokens; with 90 new tokens it does not fit the model's context of 96"):
        run_search(search_request(tmp_path / "study", small, source, max_new_tokens=90), SilentReporter())


def test_prompts_that_just_fit_the_context_can_be_searched_on(
    tmp_path: Path, source: str, model: Path, engine: ScriptedEngine
) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    longest = max(len(tokenizer(prompt.text)["input_ids"]) for prompt in load_prompts(source))
    tight = kit.tiny_llama(tmp_path / "tight", vocab=256, seed=3, context=longest + 60)
    outcome = run_scripted(search_request(tmp_path / "study", tight, source, num_prompts=20, max_new_tokens=60))
    assert outcome.bench is not None


# Other ways to decode


def test_a_sampled_search_measures_time_per_token(make_request: Any) -> None:
    outcome = run_search(make_request(temperature=0.8, top_p=0.95, trials=2), SilentReporter())
    assert outcome.bench is not None
    assert {run.lossless for run in outcome.bench.runs} == {"sampled"}
    score = outcome.skip_config.score
    assert score.end_to_end_speedup is not None
    assert outcome.skip_config.provenance["prompts"]["temperature"] == 0.8


def test_a_search_under_a_repetition_penalty_is_lossless_and_says_so(make_request: Any) -> None:
    outcome = run_search(make_request(repetition_penalty=1.3, min_p=0.1, trials=2), SilentReporter())
    assert outcome.bench is not None
    assert {run.lossless for run in outcome.bench.runs} == {"identical"}  # model.generate's among them
    study = StudyConfig.load(outcome.out / "study.toml").to_dict()
    for record in (outcome.skip_config.provenance["prompts"], outcome.bench.provenance["prompts"], study):
        assert (record["repetition_penalty"], record["min_p"]) == (1.3, 0.1)
    with pytest.raises(UsageError, match=r"another configuration .*repetition_penalty 1\.3"):
        run_search(make_request(min_p=0.1), SilentReporter())
    options = prompt_options(BenchRequest(), [outcome.skip_config])
    assert options.sampling == {**Sampling().sampling, "min_p": 0.1, "repetition_penalty": 1.3}


def test_a_search_on_the_reference_runner_scores_candidates_block_by_block(make_request: Any) -> None:
    listener = Listener()
    outcome = run_search(make_request(runner="reference", trials=2), listener)
    assert any("block" in notice for notice in listener.notices)
    assert "proxy" in listener.stage_names
    assert outcome.bench is not None
    assert {run.lossless for run in outcome.bench.runs} == {"identical"}
    assert StudyConfig.load(outcome.out / "study.toml").runner == "reference"


@pytest.mark.parametrize("policy", ["fixed", "adaptive"])
def test_a_search_keeps_to_the_policy_it_was_asked_for(make_request: Any, engine: ScriptedEngine, policy: str) -> None:
    outcome = run_scripted(make_request(policy=policy, trials=7))
    assert outcome.skip_config.draft.policy == policy
    assert {draft.policy.kind.value for draft in engine.drafts} == {policy}


def test_a_draft_vocabulary_reaches_every_trial_and_the_file(make_request: Any, engine: ScriptedEngine) -> None:
    outcome = run_scripted(make_request(vocabulary="64", trials=6))
    assert {draft.vocabulary for draft in engine.drafts} == {64}
    assert outcome.skip_config.draft.vocabulary == 64


def test_a_draft_length_that_was_fixed_is_kept_by_every_trial(make_request: Any, engine: ScriptedEngine) -> None:
    run_scripted(make_request(max_draft_tokens=3, exit_threshold=0.4, trials=16))
    assert {(draft.policy.max_draft_tokens, draft.policy.exit_threshold) for draft in engine.drafts} == {(3, 0.4)}


def test_a_draft_length_off_the_grid_can_be_searched_with(make_request: Any, engine: ScriptedEngine) -> None:
    assert run_scripted(make_request(max_draft_tokens=7)).skip_config.draft.max_draft_tokens == 7


# The plan


def test_a_plan_says_what_a_search_would_do_and_writes_nothing(make_request: Any) -> None:
    request = make_request(trials=5)
    listener = Listener()
    plan = plan_search(request, listener)
    assert not request.out.exists()
    assert plan.splits == {"calibration": 4, "selection": 4, "test": 8}
    assert plan.num_sublayers == 8
    names = [name for name, _, _ in plan.stages]
    assert names == ["calibrate", "importance", "proxy", "trials", "finalists", "test"]
    assert all(seconds is not None and seconds >= 0 for _, _, seconds in plan.stages)
    assert plan.total_seconds == pytest.approx(sum(seconds or 0.0 for _, _, seconds in plan.stages))
    assert plan.memory_bytes["weights"] > plan.memory_bytes["kv_cache"] > 0
    assert plan.prompt_tokens["min"] <= plan.prompt_tokens["median"] <= plan.prompt_tokens["max"]
    assert plan.config["model"] == request.model.name
    assert json.loads(json.dumps(plan.to_dict())) == json.loads(json.dumps(plan.to_dict()))
    assert listener.stage_names == ["load", "plan"]


def test_a_plan_shows_the_first_prompt_of_each_task_as_it_is_rendered(make_request: Any, tmp_path: Path) -> None:
    chatting = kit.tiny_llama(tmp_path / "chatting", vocab=256, chat=True)
    plan = plan_search(make_request(name=str(chatting), template="auto"), SilentReporter())
    assert list(plan.first_prompts) == ["chat", "code"]
    rendered = {f"user: {prompt.text}\nassistant: " for prompt in load_prompts(make_request().prompts.source)}
    assert set(plan.first_prompts.values()) <= rendered


def test_a_plan_with_a_time_limit_fits_its_trials_into_it(make_request: Any) -> None:
    plan = plan_search(make_request(trials=None, timeout_seconds=600.0), SilentReporter())
    trials = next(text for name, text, _ in plan.stages if name == "trials")
    assert int(trials.split()[1]) > 1
    assert plan.total_seconds is not None
    assert plan.total_seconds >= 600.0


def test_skip_sets_found_never_hold_the_first_attention_by_proxy(finished: Finished) -> None:
    candidates = json.loads((finished.folder / "ranking.json").read_text())["candidates"]
    sets = [SkipSet(4, tuple(c["skip"]["attention"]), tuple(c["skip"]["mlp"])) for c in candidates]
    assert len(set(sets)) == len(sets) >= 2
    assert all(0 not in skip_set.attention for skip_set in sets)


def test_answers_that_all_end_with_their_first_token_leave_nothing_to_predict(
    make_request: Any, engine: ScriptedEngine
) -> None:
    engine.rounds = ()
    assert run_scripted(make_request()).bench is not None


def test_lookup_and_precision_reach_every_draft_and_the_file(make_request: Any, engine: ScriptedEngine) -> None:
    request = make_request(policy="cost-aware", ngram=True, precision="int4 attn 1; head int8", trials=3)
    outcome = run_scripted(request)
    drafts = [draft for draft in engine.drafts if draft.sources]
    assert {draft.sources for draft in drafts} == {(NgramLookup(),)}
    # What is skipped has no precision; which drafts are tried depends on this machine's step times.
    for draft in drafts:
        assert str(draft.precision) == ("head int8" if 1 in draft.skip_set.attention else "int4 attn 1; head int8")
    (policy,) = {draft.policy for draft in drafts}
    assert policy.prior is not None
    assert policy == DraftPolicy(PolicyKind.COST_AWARE, LONGEST_SEARCHED, prior=policy.prior)
    written = SkipConfig.load(request.out / "skip.json")
    assert written == outcome.skip_config
    assert Draft.from_dict(written.skip_set(), written.draft.model_dump()) in drafts
    assert written.provenance["search"]["predicted_decode_speedup"] is not None


def test_the_study_records_how_its_drafts_were_made(make_request: Any, engine: ScriptedEngine) -> None:
    request = make_request(extra_memory=ExtraMemory(num_bytes=1 << 20))
    run_scripted(request)
    assert StudyConfig.load(request.out / "study.toml").draft == {
        "policy": "threshold",
        "vocabulary": "full",
        "ngram": False,
        "precision": "same",
        "base_precision": "same",
        "extra_memory": "1048576B",
    }


@pytest.mark.parametrize(
    ("fields", "precision"),
    [
        ({}, "int4 head int4"),
        ({"extra_memory": ExtraMemory()}, "same"),
        ({"runner": "reference"}, "same"),
    ],
)
def test_unless_told_otherwise_drafts_are_as_small_as_engine_and_memory_allow(
    make_request: Any, engine: ScriptedEngine, fields: dict[str, Any], precision: str
) -> None:
    defaults = DraftOptions()
    chosen = {"policy": defaults.policy, "ngram": defaults.ngram, "precision": defaults.precision}
    request = make_request(**chosen, **fields)
    outcome = run_scripted(request)
    assert StudyConfig.load(request.out / "study.toml").draft["base_precision"] == precision
    draft = outcome.skip_config.draft
    assert (draft.policy, draft.sources) == ("cost-aware", (NgramLookup(),))
    found = Draft.from_dict(outcome.skip_config.skip_set(), draft.model_dump())
    assert found.precision.is_same == (precision == "same")
    assert run_scripted(request).skip_config == outcome.skip_config  # the same command again reads it


def test_a_precision_for_layers_that_the_model_lacks_ends_a_search_at_once(make_request: Any) -> None:
    with pytest.raises(UsageError, match="Cannot read the layers in the draft precision"):
        run_scripted(make_request(precision="int4 attn 99"))


@pytest.mark.parametrize(("made", "written"), [(False, False), (True, False), (False, True)])
def test_a_search_that_is_refused_leaves_no_folder_of_its_own(tmp_path: Path, made: bool, written: bool) -> None:
    folder = StudyFolder(tmp_path / "studies" / "mine")
    if made:
        folder.path.mkdir(parents=True)
    with suppress(UsageError), folder.locked():
        if written:
            folder.calibration.write_text("{}")
        raise UsageError("no")
    assert folder.path.exists() == (made or written)
    assert folder.path.parent.exists() == (made or written)


def test_a_search_that_is_refused_leaves_what_others_made_meanwhile(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "studies" / "mine")
    with suppress(UsageError), folder.locked():
        (tmp_path / "studies" / "another").mkdir()
        raise UsageError("no")
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["another"]
