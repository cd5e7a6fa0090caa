"""The study of the proxy: standalone drafts that really run, the choice of drafts, figures, and a whole study."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, PolicyKind, Precision, Round, Source
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.rounds import num_tokens
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Sampler, autoregressive, self_speculative
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner, skipped
from selfspec_tune.engine.runners.standalone import StandaloneRunner
from selfspec_tune.engine.teacher_forcing import StandaloneScorer, Window
from selfspec_tune.errors import UsageError
from selfspec_tune.files import append_jsonl
from selfspec_tune.measure.workload import Workload
from selfspec_tune.models import LoadedModel
from selfspec_tune.requests import PromptOptions
from selfspec_tune.results import StudyConfig
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages.proxy import Prediction
from selfspec_tune.search.stages.replay import replay
from selfspec_tune.search.study_files import prediction_record
from tests import scripts_kit
from tests.engine_kit import load, prompt_tokens
from tests.runs import accepted_of, counts_of, drafted_of, sources_of
from tests.search_kit import hurry, make_item, prompt_file

import candidates  # isort: skip  # from studies/qwen2.5-coder-1.5b-proxy, by scripts_kit
import faithfulness  # isort: skip
from plain_text import plain_text  # isort: skip

pytestmark = pytest.mark.no_cover  # tracing its many small steps takes several times as long as they do

FIXED = DraftPolicy(PolicyKind.FIXED, 4)
SKIP_SETS = [SkipSet(4, (2,)), SkipSet(4, (), (1, 2)), SkipSet(4, (1, 3), (0,))]


@pytest.fixture(scope="module")
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    return load(tiny_llama_dir)


def standalone(loaded: LoadedModel, kind: Callable[[LoadedModel], Any] = FastRunner) -> StandaloneRunner:
    return StandaloneRunner(kind(loaded), kind(loaded))


@torch.inference_mode()
def following(loaded: LoadedModel, text: Sequence[int]) -> list[int]:
    """The most probable token after each of ``text``, by the model's own forward and without any cache."""
    tokens: list[int] = (
        loaded.model(input_ids=torch.tensor([list(text)]), use_cache=False).logits[0].argmax(-1).tolist()
    )
    return tokens


def by_hand(loaded: LoadedModel, prompt: Sequence[int], draft: Draft, num_tokens: int) -> list[Round]:
    """Speculative decoding in which each draft token is a pass of the draft alone over all the text."""
    text = [*prompt, following(loaded, prompt)[-1]]
    end, rounds = len(prompt) + num_tokens, list[Round]()
    while len(text) < end:
        drafted: list[int] = []
        with skipped(loaded, draft.skip_set):
            for _ in range(min(draft.policy.max_draft_tokens, end - len(text) - 1)):
                drafted.append(following(loaded, [*text, *drafted])[-1])
        targets = following(loaded, [*text, *drafted])[len(text) - 1 :]
        accepted = next((i for i, token in enumerate(drafted) if token != targets[i]), len(drafted))
        rounds.append(Round(len(drafted), accepted))
        text += [*drafted[:accepted], targets[accepted]]
    return rounds


@pytest.mark.parametrize("kind", [FastRunner, ReferenceRunner])
@pytest.mark.parametrize("skip_set", SKIP_SETS, ids=str)
def test_a_standalone_draft_is_the_draft_alone_over_all_the_text(
    loaded: LoadedModel, kind: Callable[[LoadedModel], Any], skip_set: SkipSet
) -> None:
    prompt, draft = prompt_tokens(9, seed=3), Draft(skip_set, FIXED)
    made = self_speculative(standalone(loaded, kind), prompt, Limits(24), Sampler(), draft)
    expected = by_hand(loaded, prompt, draft, 24)
    assert (drafted_of(made.rounds), accepted_of(made.rounds)) == (drafted_of(expected), accepted_of(expected))
    assert made.tokens == autoregressive(FastRunner(loaded), prompt, Limits(24), Sampler()).tokens


@pytest.mark.parametrize("skip_set", SKIP_SETS, ids=str)
def test_the_standalone_proxy_predicts_the_counts_exactly(loaded: LoadedModel, skip_set: SkipSet) -> None:
    prompt, draft, runner = prompt_tokens(7, seed=1), Draft(skip_set, FIXED), FastRunner(loaded)
    text = [*prompt, *autoregressive(runner, prompt, Limits(41), Sampler()).tokens]
    window = Window(tuple(text), len(prompt), len(text) - 1)
    trace = StandaloneScorer(runner, [window]).trace(draft)
    predicted = replay(trace, FIXED)
    made = self_speculative(standalone(loaded), prompt, Limits(41), Sampler(), draft)
    rounds = min(len(predicted), len(made.rounds)) - 1  # the last one meets the text's end
    assert rounds > 5
    assert accepted_of(made.rounds)[:rounds] == accepted_of(predicted)[:rounds]


def test_a_standalone_draft_catches_up_on_what_the_lookup_found(loaded: LoadedModel) -> None:
    prompt, limits = 3 * prompt_tokens(20), Limits(40)
    draft = Draft(SKIP_SETS[0], FIXED, sources=(NgramLookup(),))
    fast, reference = (
        self_speculative(standalone(loaded, kind), prompt, limits, Sampler(), draft)
        for kind in (FastRunner, ReferenceRunner)
    )
    assert {NgramLookup.name, Source.MODEL} <= set(sources_of(fast.rounds))
    assert counts_of(fast.rounds) == counts_of(reference.rounds)
    assert fast.tokens == autoregressive(FastRunner(loaded), prompt, limits, Sampler()).tokens


def test_a_standalone_draft_that_skips_nothing_is_always_right(loaded: LoadedModel) -> None:
    made = self_speculative(standalone(loaded), prompt_tokens(9), Limits(20), Sampler(), Draft(SkipSet.empty(4), FIXED))
    assert accepted_of(made.rounds) == drafted_of(made.rounds)


def test_drafts_are_predicted_where_they_will_be_decoded(loaded: LoadedModel, tmp_path: Path) -> None:
    workload = Workload(loaded, FastRunner(loaded), PromptOptions())
    items = [make_item(number, max_new_tokens=9) for number in range(2)]
    text = plain_text(workload, items, tmp_path / "text.json")
    for window, item in zip(text.windows, text.items, strict=True):
        tokens = autoregressive(workload.runner, item.tokens, item.limits, Sampler()).tokens
        assert window.tokens == (*item.tokens, *tokens)
        assert list(window.targets) == tokens[1:]  # the prefill gives the first
        made = self_speculative(workload.runner, item.tokens, item.limits, Sampler(), Draft(SKIP_SETS[0], FIXED))
        assert num_tokens(made.rounds) == window.end - window.start
    nobody: Any = None
    assert plain_text(nobody, items, tmp_path / "text.json") == text
    with pytest.raises(UsageError, match="too short to draft from"):
        plain_text(workload, [make_item(0, max_new_tokens=3)], tmp_path / "short.json")


# The choice of drafts


def predictions(speedups: Sequence[float], origin: Callable[[int], str] = lambda i: "random") -> list[Prediction]:
    generator = Random(0)
    drafts = [Draft(SkipSet.from_flags([generator.random() < 0.5 for _ in range(40)])) for _ in speedups]
    return [
        Prediction(draft, speedup, origin(i)) for i, (draft, speedup) in enumerate(zip(drafts, speedups, strict=True))
    ]


def test_an_even_choice_holds_both_ends_and_every_part_of_the_range() -> None:
    many = predictions([0.3, 0.5, *(2.0 - 0.001 * i for i in range(400)), *(0.5 + 0.01 * i for i in range(1, 110))])
    chosen = [prediction.speedup for prediction in candidates.spread(many, 15, 0.5)]
    assert len(chosen) == 15
    assert chosen == sorted(chosen, reverse=True)
    assert (chosen[0], chosen[-1]) == (2.0, 0.5)
    assert max(high - low for high, low in pairwise(chosen)) < 0.21


def test_gaps_are_made_up_for_and_too_few_are_all_taken() -> None:
    many = predictions([1.0, *(2.0 - 0.001 * i for i in range(50))])
    assert len(candidates.spread(many, 20, 0.5)) == 20
    assert len(candidates.spread(many[:5], 20, 0.5)) == 5
    assert len({p.draft for p in candidates.spread(predictions([1.0] * 30), 10, 0.5)}) == 10


def test_a_stratum_gives_of_the_rarest_origin_and_other_sublayers_first() -> None:
    many = predictions([2.0, 1.5, 1.49, 1.1, 1.09, 1.0], lambda i: "moves" if i in (2, 4) else "random")
    assert [p.speedup for p in candidates.spread(many, 3, 0.5)] == [2.0, 1.49, 1.0]
    same = Prediction(replace(many[0].draft, policy=FIXED), 1.51, "rare")
    assert same not in candidates.spread([many[0], same, many[1], many[-1]], 3, 0.5)


def joint(num_layers: int) -> SearchSpace:
    base = Draft(SkipSet.empty(num_layers), precision=DraftPrecision.uniform(num_layers, Precision.INT4))
    return SearchSpace(base, ((Precision.INT4, Precision.SAME),) * (2 * num_layers), (Precision.SAME, Precision.INT4))


def test_random_drafts_are_of_all_sizes_and_in_a_joint_space_of_all_precisions() -> None:
    drafts = list(candidates.random_drafts(joint(10), 20, seed=0))
    sizes = [draft.skip_set.num_skipped for draft in drafts]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (0, 17)
    assert all(0 not in draft.skip_set.attention for draft in drafts)
    assert {Precision.INT4, Precision.SAME} <= {p for draft in drafts for p in draft.sublayers}
    assert {draft.precision.head for draft in drafts} == {Precision.SAME, Precision.INT4}


def test_a_studys_drafts_are_those_that_the_space_has(tmp_path: Path) -> None:
    config = {"model": "m", "model_fingerprint": "abc", "dtype": "float32", "device": "cpu"}
    StudyConfig.model_validate(config).save(tmp_path / "study.toml")
    space = SearchSpace.of_skips(Draft(SkipSet.empty(4), vocabulary=64))
    low = Draft(SKIP_SETS[1], precision=DraftPrecision.uniform(4, Precision.INT8))
    found = [Prediction(Draft(SKIP_SETS[0]), 1.0, "local"), Prediction(low, 2.0, "local")]
    append_jsonl(tmp_path / "proxy.jsonl", *({"text": "narrow", "seconds": 0.1, **prediction_record(p)} for p in found))
    assert candidates.drafts_of_study(tmp_path, "abc", space, 9) == [Draft(SKIP_SETS[0], vocabulary=64)]
    with pytest.raises(UsageError, match="a search of another model"):
        candidates.drafts_of_study(tmp_path, "abd", space, 9)
    with pytest.raises(UsageError, match="does not exist"):
        candidates.drafts_of_study(tmp_path / "none", "abc", space, 9)


# Figures


def test_agreement_tells_ranks_from_bias() -> None:
    found = [0.5 + 0.05 * i for i in range(20)]
    exact = faithfulness.agreement(found, found)
    high = faithfulness.agreement([1.1 * value for value in found], found)
    turned = faithfulness.agreement(found[::-1], found)
    assert exact is not None
    assert high is not None
    assert turned is not None
    assert (exact.correlation.value, exact.bias.value) == pytest.approx((1.0, 1.0))
    assert high.correlation.value == pytest.approx(1.0)
    assert high.bias.value == pytest.approx(1.1)
    assert (high.is_ranked, high.is_unbiased) == (True, False)
    assert turned.correlation.value == pytest.approx(-1.0)
    assert faithfulness.agreement([1.0, 2.0], [1.0, 2.0]) is None


def row(predicted: float, found: float | None, variant: str = "shared", policy: str = "fixed") -> dict[str, Any]:
    measured = None if found is None else {"value": found, "low": found, "high": found}
    return {"variant": variant, "policy": policy, "predicted": predicted, "measured": measured, "counted": found}


def test_comparisons_leave_out_what_has_no_figure_and_judge_each_policy() -> None:
    rows = [row(1 + 0.1 * i, 0.8 + 0.1 * i) for i in range(5)] + [row(3.0, None)]
    rows += [row(2 + 0.1 * i, 2 + 0.1 * i, policy="threshold") for i in range(4)]
    records = faithfulness.compared(rows)
    assert [(r["about"], r["policy"], r["drafts"]) for r in records] == [
        (about, policy, drafts)
        for about in ("time, same text", "counts, same text")
        for policy, drafts in ((None, 9), ("fixed", 5), ("threshold", 4))
    ]
    lines = faithfulness.comparison_table(records)
    assert lines[3].startswith("| time, same text | fixed | 5 | 1.000 [")
    assert lines[3].endswith("| **missed** |")
    assert lines[4].count("**met**") == 2


def test_the_speed_has_a_verdict_on_enough_text_only() -> None:
    speed = {"positions": 200, "evaluations_a_second": 2.5, "evaluations": 100, "seconds": 40.0, "threads": 2}
    speed["policy"] = "cost-aware"
    assert faithfulness.speed_line(speed).endswith("**met**.")
    assert faithfulness.speed_line({**speed, "evaluations_a_second": 1.9}).endswith("**missed**.")
    assert faithfulness.speed_line({**speed, "positions": 60}).endswith("the target is 2 on 200 tokens.")


# A whole study


@pytest.fixture
def study_arguments(tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    pytest.importorskip("matplotlib")
    hurry(monkeypatch)
    how = "--dtype float32 --runner fast --num-prompts 16 --max-new-tokens 16 --precision same --sets 4 --pool 15"
    how += " --windows 3 --length 8 --rounds 1 --cost-seconds 0.3 --lowest 0.1"
    source = prompt_file(tmp_path / "prompts.jsonl")
    return ["--model", str(tiny_llama_dir), "--prompts", source, "--out", str(tmp_path / "out"), *how.split()]


def test_a_study_goes_on_where_it_was_killed_and_measures_nothing_twice(
    study_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert scripts_kit.run_script(monkeypatch, scripts_kit.PROXY / "proxy.py", *study_arguments) == 0
    first = json.loads((out / "results.json").read_text())
    kept = {name: (out / name).read_text() for name in ("proxy.jsonl", "picked.json", "held-out.jsonl")}
    runs = (out / "runs.jsonl").read_text().splitlines(keepends=True)
    assert len(runs) == 3 * (1 + 4)  # windows × drafts and the baseline against itself
    (out / "runs.jsonl").write_text("".join(runs[:7]) + runs[7][:20])
    (out / "results.json").unlink()
    assert scripts_kit.run_script(monkeypatch, scripts_kit.PROXY / "proxy.py", *study_arguments) == 0
    again = json.loads((out / "results.json").read_text())
    assert (out / "runs.jsonl").read_text().splitlines(keepends=True)[:7] == runs[:7]
    assert len((out / "runs.jsonl").read_text().splitlines()) == len(runs)
    assert {name: (out / name).read_text() for name in kept} == kept
    assert [draft["counted"] for draft in again["drafts"]] == [draft["counted"] for draft in first["drafts"]]
    for variant in ("shared", "standalone"):
        assert sum(draft["variant"] == variant for draft in again["drafts"]) == 4
    readme = (out / "README.md").read_text()
    assert "| standalone draft: counts, same text | all | 4 |" in readme
    assert str(tmp_path) not in readme + json.dumps(again)
    assert (out / "faithfulness.svg").read_bytes().startswith(b"<?xml")


def test_other_settings_and_bad_ones_are_refused(
    study_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text('{"sets": 3}')
    with pytest.raises(UsageError, match=r"other settings: .* Give the same, or another --out"):
        scripts_kit.run_script(monkeypatch, scripts_kit.PROXY / "proxy.py", *study_arguments)
    for option, value in (("--sets", "2"), ("--policies", "fixed,clever"), ("--length", "1")):
        with pytest.raises(UsageError, match=f"{option} .*: expected"):
            scripts_kit.run_script(monkeypatch, scripts_kit.PROXY / "proxy.py", *study_arguments, option, value)
