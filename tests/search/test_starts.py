from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfspec_tune.bench import compare as compare_module
from selfspec_tune.bench import run_comparison
from selfspec_tune.bench.run import choose_prompts
from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, PromptError, SkipSetError, UsageError
from selfspec_tune.measure.contenders import prompt_options
from selfspec_tune.requests import BenchRequest, CompareRequest, SearchRequest, StrategyName
from selfspec_tune.results import DraftSettings, SkipConfig, SkipLayers, StudyConfig
from selfspec_tune.search import plan_search, run_search
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages.proxy import Prediction
from selfspec_tune.search.starts import START, Start, fit_start, read_start, to_measure, to_predict
from selfspec_tune.search.study import StudyFolder
from selfspec_tune.search.study_files import Incumbent, Trajectory
from tests import kit
from tests.journal import all_trials
from tests.results_kit import MODEL, skip_config
from tests.search_kit import Listener, ScriptedEngine, by_number_skipped, hurry, prompt_file, search_request

LAYERS = MODEL.num_layers
SKIPS = SearchSpace.of_skips(Draft(SkipSet.empty(LAYERS)))
INT4_BASE = Draft(SkipSet.empty(LAYERS), precision=DraftPrecision.uniform(LAYERS, Precision.INT4, Precision.INT4))


def joint_space(**fields: Any) -> SearchSpace:
    """Sub-layers and head at int4, begun from, or the model's own precision; a copy takes a byte."""
    choices = (Precision.INT4, Precision.SAME)
    whole: dict[str, Any] = {"copy_bytes": num_copies, "allowed_bytes": 2 * LAYERS + 1, **fields}
    return SearchSpace(INT4_BASE, (choices,) * (2 * LAYERS), choices, **whole)


def num_copies(draft: Draft) -> int:
    return sum(p not in (None, Precision.SAME) for p in (*draft.sublayers, draft.precision.head))


def loaded(**fields: Any) -> Any:
    values = {"name": "tiny", "num_layers": LAYERS, "fingerprint": MODEL.fingerprint, "architecture": "Llama"}
    return SimpleNamespace(**(values | fields))


def fitted(name: str | Path, space: SearchSpace = SKIPS, policy: PolicyKind = PolicyKind.THRESHOLD) -> Start:
    return fit_start(read_start(str(name)), loaded(num_layers=space.num_layers), space, [policy])


def settings_of(draft: Draft) -> dict[str, Any]:
    """The fields of a skip.json that are about its draft."""
    return {
        "skip": SkipLayers.model_validate(draft.skip_set.to_dict()),
        "draft": DraftSettings.model_validate(draft.to_dict()),
        "model": MODEL.model_copy(update={"num_layers": draft.skip_set.num_layers}),
    }


def save(path: Path, of: Draft | None = None, **fields: Any) -> Path:
    """A skip.json of a draft for as many layers as it has."""
    skip_config(**((settings_of(of) if of else {}) | fields)).save(path)
    return path


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


# Reading


def test_a_skip_file_is_tried_as_it_is(tmp_path: Path) -> None:
    start = fitted(save(tmp_path / "skip.json"))
    assert [draft.skip_set for draft in start.drafts] == [skip_config().skip_set()]
    assert start.predicted == ()
    assert start.about == "1 draft"


@pytest.mark.parametrize(
    "value",
    [
        {"llama-2-13b": {"attention": [1], "mlp": [2]}},
        {"llama-2-13b_gsm8k": {"attention": [1], "mlp": [2]}},
        {"attention": [1], "mlp": [2]},
        [int(index in (2, 5)) for index in range(2 * LAYERS)],
    ],
)
def test_a_file_of_another_project_is_tried_at_the_precision_that_the_search_begins_from(
    tmp_path: Path, value: Any
) -> None:
    start = fitted(write(tmp_path / "theirs.json", value), joint_space())
    assert start.drafts == (joint_space().skipping(frozenset({2, 5})),)
    assert start.about == "1 draft"


def test_a_text_is_tried_too() -> None:
    assert fitted("attn 1 · mlp 2").drafts == (Draft(SkipSet(LAYERS, (1,), (2,))),)


def test_one_entry_of_a_file_is_chosen_by_its_key(tmp_path: Path) -> None:
    file = write(tmp_path / "two.json", {"a": {"attention": [1], "mlp": []}, "b": {"attention": [2], "mlp": []}})
    assert fitted(f"{file}#b").drafts == (Draft(SkipSet(LAYERS, (2,))),)
    with pytest.raises(SkipSetError, match=r"`start_from` .*two\.json holds 2 skip sets; name one"):
        fitted(file)


def save_study(folder: Path) -> tuple[Draft, list[Draft], list[Draft]]:
    """A study with a winner, five bests of its trials and two candidates that were predicted only."""
    winner, candidates = Draft(SkipSet(LAYERS, (9,))), [Draft(SkipSet(LAYERS, (i,), (4,))) for i in (1, 2)]
    bests = [Draft(SkipSet(LAYERS, (1, i))) for i in range(2, 7)]
    save(folder / "skip.json", winner)
    trajectory = Trajectory(StudyFolder(folder).trajectory)
    trajectory.note(Incumbent(1.0, Draft(SkipSet(LAYERS, (), (11,))), 1.1, "proxy"))
    for seconds, best in enumerate([*bests, winner]):
        trajectory.note(Incumbent(float(seconds), best, 1.2, "trials"))
    records = [
        {"skip": c.skip_set.to_dict(), "draft": c.to_dict(), "predicted_decode_speedup": 1.1, "origin": "local"}
        for c in (winner, *candidates)
    ]
    write(StudyFolder(folder).ranking, {"schema": "selfspec-tune/ranking", "version": 3, "candidates": records})
    return winner, bests, candidates


def test_a_study_gives_its_winner_the_bests_of_its_trials_and_its_candidates(tmp_path: Path) -> None:
    winner, bests, candidates = save_study(tmp_path / "study")
    start = fitted(tmp_path / "study")
    assert start.drafts == (winner, bests[4], bests[3])
    assert start.predicted == tuple(candidates)
    assert start.about == "5 drafts"
    assert fitted(tmp_path / "study" / "skip.json").drafts == (winner,)


def test_of_several_starts_each_ones_best_comes_before_any_ones_second(tmp_path: Path) -> None:
    winner, bests, candidates = save_study(tmp_path / "study")
    text = Draft(SkipSet(LAYERS, (7,)))
    starts = [fitted(tmp_path / "study"), fitted("attn 7"), fitted("attn 9")]
    assert to_measure(starts) == [winner, text, bests[4], bests[3]]
    assert to_predict(starts) == [winner, text, bests[4], bests[3], *candidates]


def test_what_was_read_has_a_hash_that_its_content_alone_decides(tmp_path: Path) -> None:
    save_study(tmp_path / "a")
    save_study(tmp_path / "b")
    first, other = (read_start(f"{tmp_path / name}/") for name in "ab")
    assert first.content_hash == other.content_hash
    assert first.name == str(tmp_path / "a")
    Trajectory(StudyFolder(tmp_path / "b").trajectory).note(Incumbent(9.0, Draft(SkipSet(LAYERS, (3,))), 2.0, "trials"))
    assert read_start(str(tmp_path / "b")).content_hash != first.content_hash
    assert read_start("attn 1").content_hash != read_start("attn 2").content_hash


# What does not fit


def test_another_depth_is_rescaled_and_said_so(tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"num_layers": 24, "id": "org/Big", "fingerprint": "ff", "architecture": "Llama"})
    draft = Draft(SkipSet(24, (8, 9), (20, 21)))
    start = fitted(save(tmp_path / "big.json", draft, model=model))
    assert start.drafts == (Draft(SkipSet(LAYERS, (4,), (10,)), draft.policy),)
    assert start.about == "1 draft; made for another model, org/Big (Llama); rescaled from 24 to 12 layers"
    flags = write(tmp_path / "flags.json", draft.skip_set.to_flags())
    assert fitted(flags).about == "1 draft; rescaled from 24 to 12 layers"


def test_a_sibling_of_the_same_depth_is_accepted_with_a_notice(tmp_path: Path) -> None:
    wider = MODEL.model_copy(update={"id": "org/Wide", "fingerprint": "ff", "parameters": 10**9})
    start = fitted(save(tmp_path / "wide.json", model=wider))
    assert len(start.drafts) == 1
    assert start.about == "1 draft; made for another model, org/Wide"


def test_another_family_is_named_beside_the_models(tmp_path: Path) -> None:
    other = MODEL.model_copy(update={"id": "org/Neox", "fingerprint": "ff", "architecture": "GPTNeoXForCausalLM"})
    start = fitted(save(tmp_path / "neox.json", model=other))
    assert len(start.drafts) == 1
    assert start.about == (
        "1 draft; made for another family, org/Neox (GPTNeoXForCausalLM, this one is Llama), whose sub-layers may "
        "matter elsewhere"
    )


@pytest.mark.parametrize(("depth", "is_near"), [(2, False), (3, True), (48, True), (49, False)])
def test_a_depth_too_far_away_is_refused_with_both(tmp_path: Path, depth: int, is_near: bool) -> None:
    flags = SkipSet(depth, tuple(range(1, depth))).to_flags()
    file = write(tmp_path / "flags.json", [int(flag) for flag in flags])
    if is_near:
        assert fitted(file).drafts
        return
    with pytest.raises(UsageError, match=rf"is for a model of {depth} layers; this one has 12\. .* above 4"):
        fitted(file)


def test_a_layer_that_the_model_lacks_is_refused_by_file_and_layer(tmp_path: Path) -> None:
    file = write(tmp_path / "theirs.json", {"llama-2-13b": {"attention": [3, 39], "mlp": []}})
    with pytest.raises(SkipSetError) as caught:
        fitted(file)
    for part in (
        "`start_from`",
        "theirs.json#llama-2-13b: attention layer 39 is out of range",
        "has 12 layers",
        "states no depth",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("change", [{"skip": SkipLayers(attention=[44])}, {"skip": SkipLayers(mlp=[-1])}])
def test_a_skip_file_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(SkipSetError, match=r"skip\.json .* out of range; the model has 12 layers"):
        fitted(save(tmp_path / "skip.json", **change))


def test_a_draft_that_cannot_be_read_is_a_format_error(tmp_path: Path) -> None:
    settings = DraftSettings.model_validate({**Draft(SkipSet.empty(2)).to_dict(), "prior": {"mean": "x"}})
    with pytest.raises(FileFormatError, match=r"skip\.json does not fit .*: draft: prior\.mean is 'x'"):
        fitted(save(tmp_path / "skip.json", draft=settings))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1] * 2 * LAYERS, "no layer is left to draft with. Give a skip set that keeps some"),
        ([1] * 4 * LAYERS, "no layer is left to draft with after rescaling from 24 to 12 layers"),
        ([int(i == 20) for i in range(8 * LAYERS)], "nothing is left .* after rescaling from 48 to 12 layers"),
        ({"attention": [], "mlp": []}, "no sub-layer is skipped and none drafts at lower precision"),
    ],
)
def test_a_start_of_which_nothing_is_left_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fitted(write(tmp_path / "file.json", value))


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("empty", FileFormatError, r"empty/skip\.json does not exist: .*empty is no study"),
        ("torn.json", FileFormatError, r"torn\.json is not valid JSON"),
        ("gone.json", FileFormatError, r"gone\.json does not exist"),
        ("gone", SkipSetError, "'gone' is no file or folder here, nor a skip set. .* expected a form like"),
        ("study", FileFormatError, r"The candidates of study do not fit .* Start from its skip\.json alone"),
    ],
)
def test_what_cannot_be_read_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("torn.json").write_text('{"schema": "selfspec-tune/skip-')
    save_study(Path("study"))
    write(Path("study/ranking.json"), {"schema": "selfspec-tune/ranking"})
    with pytest.raises(error, match=message):
        read_start(name)


def test_a_text_longer_than_any_file_name_is_a_text(tmp_path: Path) -> None:
    text = "attn " + ",".join(["1"] * 3000)
    assert fitted(text).drafts == (Draft(SkipSet(LAYERS, (1,))),)
    assert SearchRequest(tmp_path, start_from=(text,)).start_from == (text,)


def test_the_first_attention_is_kept(tmp_path: Path) -> None:
    start = fitted("attn 0-2")
    assert start.drafts == (Draft(SkipSet(LAYERS, (1, 2))),)
    assert start.about == "1 draft; attn 0 is kept"


# Projection


def test_precisions_that_the_search_does_not_have_give_way(tmp_path: Path) -> None:
    sublayers = [Precision.INT8 if i < 4 else Precision.INT4 for i in range(2 * LAYERS)]
    draft = INT4_BASE.with_sublayers([*sublayers[:-1], None]).with_head(Precision.INT8)
    file = save(tmp_path / "skip.json", draft)
    assert fitted(file).drafts == (Draft(SkipSet(LAYERS, (), (11,)), draft.policy),)
    assert "this search's own precision in place of int4, int8" in fitted(file).about
    joint = fitted(file, joint_space())
    assert joint.drafts == (INT4_BASE.with_sublayer(23, None),)
    assert joint.about == "1 draft; this search's own precision in place of int8"


def test_low_precision_alone_leaves_nothing_where_a_search_has_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing is left of it in this search.* `precision`"):
        fitted(save(tmp_path / "skip.json", INT4_BASE))


def test_skips_alone_are_tried_at_the_searchs_lower_precision_too(tmp_path: Path) -> None:
    start = fitted(save(tmp_path / "skip.json", Draft(SkipSet(LAYERS, (3,)))), joint_space())
    same, low = start.drafts
    assert {same.skip_set, low.skip_set} == {SkipSet(LAYERS, (3,))}
    assert same.precision.is_same
    assert set(low.precision.sublayers) == {Precision.INT4}


def test_a_start_is_brought_within_the_memory(tmp_path: Path) -> None:
    choices = (Precision.SAME, Precision.INT4)
    base = Draft(SkipSet.empty(LAYERS))
    space = SearchSpace(base, (choices,) * (2 * LAYERS), choices, copy_bytes=num_copies, allowed_bytes=10)
    start = fitted(save(tmp_path / "skip.json", INT4_BASE), space)
    (draft,) = start.drafts
    assert space.admits(draft)
    assert num_copies(draft) == 10
    assert "brought within `extra_memory`: 15 sub-layers at another precision" in start.about


def test_another_policy_is_replaced_and_said_so(tmp_path: Path) -> None:
    draft = Draft(SkipSet(LAYERS, (3,)), DraftPolicy(PolicyKind.ADAPTIVE, 9))
    about = fitted(save(tmp_path / "skip.json", draft), policy=PolicyKind.COST_AWARE).about
    assert about == "1 draft; drafts by this search's cost-aware policy, not its adaptive"


# In a search


@pytest.fixture
def ask(tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SearchRequest]:
    """Makes requests for searches of the tiny model whose trials are scripted: the more is skipped, the faster."""
    hurry(monkeypatch)
    monkeypatch.chdir(tmp_path)
    ScriptedEngine(by_number_skipped).install(monkeypatch)
    source = prompt_file(tmp_path / "p.jsonl")

    def make(out: str = "study", **fields: Any) -> SearchRequest:
        return search_request(Path(out), tiny_llama_dir, source, **fields)

    return make


ODD = "attn 1,3 · mlp 0,2"  # nothing that the proxy of a random model would find good


def test_a_staged_search_predicts_its_starts_and_measures_the_best_first(ask: Callable[..., SearchRequest]) -> None:
    listener = Listener()
    outcome = run_search(ask(start_from=(ODD,), trials=2), listener)
    assert listener.trials[0].origin == START
    assert str(listener.trials[0].draft.skip_set) == ODD
    assert f"start {ODD}: 1 draft" in listener.notices
    (record,) = outcome.skip_config.provenance["search"]["start_from"]
    assert (record["name"], record["num_drafts"], record["model"]) == (ODD, 1, None)
    rows = [json.loads(line) for line in Path("study/proxy.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows if row["origin"] == START] == ["narrow", "middle", "wide"]
    assert rows[0]["origin"] == START


@pytest.mark.parametrize("strategy", [name for name in StrategyName if name is not StrategyName.STAGED])
def test_every_other_strategy_measures_its_starts_before_its_own(
    ask: Callable[..., SearchRequest], strategy: StrategyName
) -> None:
    listener = Listener()
    starts = (ODD, "attn 2", "mlp 1-3")
    run_search(ask(start_from=starts, strategy=strategy, trials=4), listener)
    assert [str(trial.draft.skip_set) for trial in listener.trials[:3]] == list(starts)
    assert [trial.origin for trial in listener.trials] == [START] * 3 + [strategy.value]
    assert len(all_trials(Path("study/journal.log"))) == 4  # nothing of its own waits behind them


def test_starts_that_wait_when_a_search_ends_come_next_when_it_goes_on(ask: Callable[..., SearchRequest]) -> None:
    starts = (ODD, "attn 2", "mlp 1-3")
    run_search(ask(start_from=starts, strategy=StrategyName.RANDOM, trials=1), Listener())
    listener = Listener()
    run_search(ask(start_from=starts, strategy=StrategyName.RANDOM, trials=4), listener)
    assert [trial.origin for trial in listener.trials] == [START] * 3 + ["random"]
    assert len(all_trials(Path("study/journal.log"))) == 4


def test_a_search_goes_on_from_another_study(ask: Callable[..., SearchRequest]) -> None:
    run_search(ask("first", trials=2), Listener())
    listener = Listener()
    run_search(ask("second", start_from=("first",), trials=1), listener)
    candidates = json.loads(Path("first/ranking.json").read_text())["candidates"]
    assert any(notice.startswith("start first: ") for notice in listener.notices)
    assert listener.trials[0].origin == START
    predicted = [json.loads(line) for line in Path("second/proxy.jsonl").read_text().splitlines()]
    narrow = [row["skip"] for row in predicted if row["text"] == "narrow"]
    assert all(candidate["skip"] in narrow for candidate in candidates)


def test_a_study_records_its_starts_and_is_not_resumed_with_others(ask: Callable[..., SearchRequest]) -> None:
    write(Path("flags.json"), [0, 0, 1, 0, 0, 0, 0, 0])
    run_search(ask(start_from=("./flags.json", ODD), trials=1), Listener())
    config = StudyConfig.load("study/study.toml")
    assert list(config.start_from or ()) == ["flags.json", ODD]
    run_search(ask(start_from=("flags.json", ODD), trials=2), Listener())
    for others in ((), ("flags.json",)):
        with pytest.raises(UsageError, match=r"holds a search with another configuration \(start_from"):
            run_search(ask(start_from=others, trials=2), Listener())
    write(Path("flags.json"), [0, 0, 1, 1, 0, 0, 0, 0])
    with pytest.raises(UsageError, match="start_from"):
        run_search(ask(start_from=("flags.json", ODD), trials=2), Listener())


def test_a_study_without_starts_names_none_and_resumes_as_before(ask: Callable[..., SearchRequest]) -> None:
    outcome = run_search(ask(trials=1), Listener())
    assert "start_from" not in Path("study/study.toml").read_text()
    assert "start_from" not in outcome.skip_config.provenance["search"]
    assert "earlier" not in outcome.skip_config.provenance["prompts"]
    run_search(ask(trials=2), Listener())


def test_a_search_does_not_start_from_its_own_folder(ask: Callable[..., SearchRequest]) -> None:
    run_search(ask(trials=1), Listener())
    for name in ("study", "./study/", "study/skip.json"):
        with pytest.raises(UsageError, match=r"own folder, where it resumes by itself"):
            run_search(ask(start_from=(name,)), Listener())


def test_the_plan_names_the_starts(ask: Callable[..., SearchRequest]) -> None:
    plan = plan_search(ask(start_from=(ODD,)), Listener())
    assert list(plan.config["start_from"]) == [ODD]
    assert any(what.startswith("starts (1), ") for _, what, _ in plan.stages)


def test_a_deeper_models_study_is_rescaled_from(ask: Callable[..., SearchRequest], tmp_path: Path) -> None:
    deeper = kit.tiny_llama(tmp_path / "deeper", layers=6)
    run_search(search_request(Path("deep"), deeper, str(tmp_path / "p.jsonl"), trials=1), Listener())
    listener = Listener()
    run_search(ask(start_from=("deep",), trials=1), listener)
    assert any("rescaled from 6 to 4 layers" in notice for notice in listener.notices)


# Held-out prompts


def test_the_test_holds_no_prompt_that_an_earlier_search_has_read(ask: Callable[..., SearchRequest]) -> None:
    first = run_search(ask("first", trials=1), Listener()).skip_config
    second = run_search(ask("second", start_from=("first",), seed=1, trials=1), Listener()).skip_config
    third = run_search(ask("third", start_from=("second",), seed=2, trials=1), Listener()).skip_config
    for config in (second, third):
        assert first.read_prompts <= config.read_prompts
        assert config.prompt_hashes("test").isdisjoint(config.read_prompts)
        assert len(config.prompt_hashes("test")) == 8


def test_prompts_of_the_test_that_were_read_are_left_out_and_counted(ask: Callable[..., SearchRequest]) -> None:
    run_search(ask("first", trials=1), Listener())
    config = SkipConfig.load("first/skip.json")
    read = sorted(config.prompt_hashes("calibration", "selection", "test"))
    save(Path("most.json"), provenance={"prompts": {"calibration": read[:12]}}, **like(config))
    listener = Listener()
    found = run_search(ask("second", start_from=("most.json",), trials=1), listener).skip_config
    assert len(found.prompt_hashes("test")) == 4
    options = prompt_options(BenchRequest(), [found])
    assert options.num_prompts == 16
    benched, _ = choose_prompts(BenchRequest(), options, [found])
    assert {prompt.hash for prompt in benched} == found.prompt_hashes("test")
    assert any(notice.startswith("4 of 8 test prompts are left out") for notice in listener.notices)
    save(Path("all.json"), provenance={"prompts": {"calibration": read}}, **like(config))
    with pytest.raises(PromptError, match="left to test on were all read by a search that this one starts from"):
        run_search(ask("third", start_from=("all.json",), trials=1), Listener())


def like(config: SkipConfig) -> dict[str, Any]:
    return {"model": config.model, "skip": SkipLayers(attention=[2]), "draft": config.draft}


# Compared strategies


def test_compared_strategies_all_start_there(
    ask: Callable[..., SearchRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SearchRequest] = []

    def stop_after(request: SearchRequest, reporter: Any) -> Any:
        asked.append(request)
        return SimpleNamespace(interrupted=len(asked) == 2)

    monkeypatch.setattr(compare_module, "run_search", stop_after)
    strategies = (StrategyName.STAGED, StrategyName.SELF_SD)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(CompareRequest(ask(start_from=(ODD,)), strategies), Listener())
    assert [request.start_from for request in asked] == [(ODD,)] * 2


def test_a_comparison_that_would_start_from_one_of_its_own_searches_is_refused_before_any_runs(
    ask: Callable[..., SearchRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "run_search", lambda *_: pytest.fail("it ran"))
    request = ask("both", start_from=("both/tpe",))
    with pytest.raises(UsageError, match="own folder"):
        run_comparison(CompareRequest(request, (StrategyName.STAGED, StrategyName.TPE)), Listener())


def test_a_projection_is_in_the_space_and_stays_where_it_is() -> None:
    space = joint_space()
    draft = replace(INT4_BASE, vocabulary=77, experts=2).with_sublayers([None, Precision.INT8] * LAYERS)
    found = space.projected(draft)
    assert found == space.projected(found)
    assert found.vocabulary is None
    assert found.experts is None  # a space of a model without a choice of them
    assert replace(space, experts=(None, 2)).projected(draft).experts == 2
    assert found.sublayers[0] is Precision.INT4
    assert found.sublayers[2] is None
    assert Prediction(found, 1.0, START).draft.sublayers[1] is Precision.INT4
