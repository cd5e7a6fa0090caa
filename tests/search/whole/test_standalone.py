"""Searches for drafts that stand alone, and what a search that shares the cache says of its draft alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from selfspec_tune.cli.app import app
from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Sampler, autoregressive, choose_runner, self_speculative
from selfspec_tune.engine.runner import Scores, Want, scored
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.reference import ReferenceRunner
from selfspec_tune.engine.runners.standalone import StandaloneRunner
from selfspec_tune.errors import UsageError
from selfspec_tune.models import LoadedModel, load_model
from selfspec_tune.requests import DraftOptions, Objective, PolicyChoice
from selfspec_tune.results import SkipConfig, StudyConfig
from selfspec_tune.search import run_search
from tests.engine_kit import RUNNERS, prompt_tokens
from tests.runs import accepted_of, drafted_of
from tests.search_kit import Listener, search_request

SET = SkipSet(4, (1, 3), (2,))


@pytest.fixture(scope="module")
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    return load_model(str(tiny_llama_dir), dtype="float32", device="cpu")


@pytest.mark.parametrize("kind", [FastRunner, ReferenceRunner])
@pytest.mark.parametrize("policy", [DraftPolicy(PolicyKind.FIXED, 4), DraftPolicy(PolicyKind.THRESHOLD, 5, 0.1)])
def test_greedy_steps_draft_what_logits_would(kind: Any, policy: DraftPolicy, loaded: LoadedModel) -> None:
    prompt, limits = prompt_tokens(9, seed=1), Limits(30)
    made = [
        self_speculative(runner, prompt, limits, Sampler(), Draft(SET, policy))
        for runner in (StandaloneRunner(kind(loaded), kind(loaded)), _ByLogits(kind(loaded), kind(loaded)))
    ]
    assert made[0].tokens == made[1].tokens == autoregressive(kind(loaded), prompt, limits, Sampler()).tokens
    assert drafted_of(made[0].rounds) == drafted_of(made[1].rounds)
    assert accepted_of(made[0].rounds) == accepted_of(made[1].rounds)


class _ByLogits:
    """The same runner, which chooses by its logits, one step at a time."""

    def __init__(self, full: Any, alone: Any) -> None:
        self._runner = StandaloneRunner(full, alone)

    def forward(self, tokens: Sequence[int], *, want: Want = Want.LOGITS, **how: bool) -> Scores:
        logits = self._runner.forward(tokens, **how).logits
        return scored(logits, want, self._runner, tokens, is_draft=how.get("is_draft", False))

    def __getattr__(self, name: str) -> Any:
        if name == "draft_ahead":
            raise AttributeError(name)
        return getattr(self._runner, name)


@pytest.mark.parametrize("name", RUNNERS)
def test_the_second_runner_is_like_the_first_and_proves_nothing_again(
    name: str, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choose_runner(loaded, name, [].append)
    with monkeypatch.context() as patch:
        patch.setattr(ReferenceRunner, "_forward", None)  # what it is compared with cannot run
        runner = StandaloneRunner.of(chosen, loaded)
    full, alone = runner._full, runner._alone
    assert full is chosen
    assert alone is not chosen
    assert type(alone) is type(chosen)
    assert getattr(alone, "notice", None) == getattr(chosen, "notice", None)
    prompt, limits = prompt_tokens(9, seed=1), Limits(12)
    plain = autoregressive(chosen, prompt, limits, Sampler()).tokens
    draft = Draft(SET, DraftPolicy(PolicyKind.FIXED, 4))
    assert self_speculative(runner, prompt, limits, Sampler(), draft).tokens == plain


def test_a_standalone_search_drafts_as_an_exported_draft_does(tmp_path: Path, model: Path, source: str) -> None:
    request = search_request(tmp_path / "study", model, source, objective=Objective.STANDALONE, policy="auto")
    listener = Listener()
    outcome = run_search(request, listener)
    config = SkipConfig.load(tmp_path / "study" / "skip.json")
    assert config == outcome.skip_config
    assert config.objective == "standalone"
    assert (config.draft.policy, config.draft.sources, config.draft.vocabulary) == ("fixed", (), None)
    assert config.draft.precision == "same"
    assert StudyConfig.load(tmp_path / "study" / "study.toml").draft["objective"] == "standalone"
    assert outcome.bench is not None
    assert all(run.is_lossless for run in outcome.bench.runs if run.method == "self-speculative")


def test_a_shared_search_says_what_its_draft_is_worth_alone(tmp_path: Path, model: Path, source: str) -> None:
    run_search(search_request(tmp_path / "study", model, source), Listener())
    config = SkipConfig.load(tmp_path / "study" / "skip.json")
    alone = config.provenance["search"]["standalone"]
    assert config.objective == "shared"
    assert alone["decode_speedup"] > 0
    assert 0 <= alone["acceptance_rate"] <= 1
    assert alone["draft_tokens"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "cost-aware"}, "not by `policy` cost-aware"),
        ({"precision": "int4"}, "`precision` int4 is lost"),
        ({"vocabulary": "8192"}, "`vocabulary` 8192 is lost"),
    ],
)
def test_what_no_exported_draft_does_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DraftOptions(objective=Objective.STANDALONE, **options)


def test_standalone_drafts_go_by_a_fixed_length_unless_told_otherwise() -> None:
    assert DraftOptions(objective=Objective.STANDALONE).policy_kinds == (PolicyKind.FIXED,)
    asked = DraftOptions(objective=Objective.STANDALONE, policy=PolicyChoice.THRESHOLD.value)
    assert asked.policy_kinds == (PolicyKind.THRESHOLD,)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--strategy", "self-sd"], "--strategy self-sd searches, as it was published, for drafts that share"),
        (["--policy", "adaptive"], "not by --policy adaptive. Name one of these, or leave it out"),
        (["--ngram"], "--ngram is for a draft in this program's engine"),
        (["--extra-memory", "1GiB"], "--extra-memory is for a draft in this program's engine"),
        (["--draft-precision", "int4"], "--draft-precision int4 is lost. Leave it out"),
        (["--per-task"], "leave out --objective standalone"),
    ],
)
def test_the_command_line_refuses_what_is_lost(options: list[str], reason: str) -> None:
    run = CliRunner().invoke(app, ["search", "--objective", "standalone", *options])
    assert run.exit_code == 2
    assert reason in " ".join(run.output.split())


def test_the_command_line_searches_for_drafts_that_stand_alone(tmp_path: Path, model: Path, source: str) -> None:
    out = tmp_path / "study"
    options = ["--model", str(model), "--prompts", source, "--num-prompts", "16", "--max-new-tokens", "16"]
    options += [
        "--template",
        "raw",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--trials",
        "1",
        "--out",
        str(out),
        "--quiet",
    ]
    run = CliRunner().invoke(app, ["search", "--objective", "standalone", *options])
    assert run.exit_code == 0, run.output
    assert SkipConfig.load(out / "skip.json").objective == "standalone"
    assert "keys and values of its own" in CliRunner().invoke(app, ["show", str(out)]).output
