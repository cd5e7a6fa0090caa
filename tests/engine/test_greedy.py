"""Greedy steps: every runner's own, or chosen from its logits, are the greedy choice of its passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from selfspec_tune.draft import CONFIDENCE_EDGES, LONGEST_SEARCHED, AcceptancePrior, Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.rounds import num_drafted
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Runner, Sampler, autoregressive, self_speculative
from selfspec_tune.engine.runner import Scores, Want, draft_ahead, prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.runners.graphs import GraphedRunner
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.models import LoadedModel
from tests.covering import cover
from tests.engine_kit import RUNNERS, STEPS, certainty_by, decode, draft_step, kind_of, load, prompt_tokens

DRAFT = Draft(SkipSet(4, (1,), (2,)), DraftPolicy(PolicyKind.THRESHOLD, 6))
DTYPES = ["float32", "bfloat16"]
passes = partial(cover, indirect=["loaded", "runner"], loaded=DTYPES, runner=list(RUNNERS))


@pytest.fixture(scope="module", params=DTYPES)
def loaded(request: pytest.FixtureRequest, tiny_llama_dir: Path) -> LoadedModel:
    return load(tiny_llama_dir, request.param)


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest, loaded: LoadedModel) -> Runner:
    made = RUNNERS[request.param](loaded)
    made.reserve(200)
    made.set_draft(DRAFT)
    prefill(made, prompt_tokens(30))
    return made


def test_a_plain_step_gives_the_most_probable_token(runner: Runner) -> None:
    for token in prompt_tokens(8, seed=1):
        expected = int(decode(runner, token).argmax())
        runner.rewind(30)
        assert runner.forward([token], want=Want.TOKENS).tokens[0] == expected
        assert runner.length == 31
        runner.rewind(30)


@passes(count=[1, 2, 7, 16, 33, 40])
def test_a_verification_gives_the_most_probable_token_after_each(runner: Runner, count: int) -> None:
    tokens = prompt_tokens(count, seed=2)
    expected = runner.forward(tokens).logits.argmax(-1).tolist()
    runner.rewind(30)
    assert runner.forward(tokens, want=Want.TOKENS).tokens == expected
    assert runner.length == 30 + count


def test_drafting_ahead_follows_its_own_tokens(runner: Runner) -> None:
    token, expected = 5, []
    for _ in range(5):
        token = int(draft_step(runner, token).argmax())
        expected.append(token)
    runner.rewind(30)
    ahead = draft_ahead(runner, 5, 5)
    assert ahead.tokens == expected
    assert len(ahead.certainties) == 5
    assert runner.length == 35
    assert draft_ahead(runner, 5, 0).tokens == []


@passes(count=[1, 2, 5, 9])
def test_a_draft_pass_puts_after_each_token_what_a_step_would(runner: Runner, count: int) -> None:
    tokens = prompt_tokens(count, seed=4)
    expected, certainties = [], []
    for token in tokens:
        logits = draft_step(runner, token)
        expected.append(int(logits.argmax()))
        certainties.append(pytest.approx(certainty_by(logits), rel=0.02, abs=0.02))
    runner.rewind(30)
    scores = runner.forward(tokens, is_draft=True, want=Want.CERTAINTIES)
    assert scores.tokens == expected
    assert scores.certainties == certainties
    assert runner.length == 30 + count
    runner.rewind(30)
    assert runner.forward(tokens, is_draft=True).logits.argmax(-1).tolist() == expected


class NoLogits:
    """A runner that is asked for no logits after its prefill."""

    def forward(self, tokens: Sequence[int], *, want: Want = Want.LOGITS, **how: Any) -> Scores:
        assert want is not Want.LOGITS or how.get("last_only"), f"logits of a {kind_of(tokens, **how)} were built"
        return super().forward(tokens, want=want, **how)  # type: ignore[misc]


class MuteNative(NoLogits, NativeRunner): ...


class MuteGraphs(NoLogits, GraphedRunner): ...


@pytest.mark.parametrize("kind", [MuteNative, MuteGraphs])
@pytest.mark.parametrize("policy", PolicyKind)
def test_greedy_decoding_builds_no_logits_where_the_runner_chooses(
    loaded: LoadedModel, kind: Callable[[LoadedModel], Runner], policy: PolicyKind
) -> None:
    prompt, limits, sampler = prompt_tokens(12), Limits(24), Sampler()
    mute = kind(loaded)
    plain = autoregressive(mute, prompt, limits, sampler).tokens
    draft = Draft(SkipSet(4, (1,), (2,)), DraftPolicy(policy, 4, 0.1, credit=4.0), sources=(NgramLookup(2, 1, 3),))
    made = self_speculative(mute, prompt, limits, sampler, draft, STEPS)
    assert len(plain) == len(made.tokens) == 24
    if loaded.dtype == torch.float32:
        assert plain == autoregressive(FastRunner(loaded), prompt, limits, sampler).tokens
    if loaded.dtype == torch.float32 or kind is MuteNative:  # its bits are the same for any number of tokens
        assert made.tokens == plain
    with pytest.raises(AssertionError, match="logits of"):
        self_speculative(mute, prompt, limits, Sampler(temperature=1.0), draft, STEPS)


def test_a_fixed_draft_ends_with_an_end_of_sequence_though_drafted_at_once(loaded: LoadedModel) -> None:
    graphed = GraphedRunner(loaded)
    draft = Draft(SkipSet.empty(4), DraftPolicy(PolicyKind.FIXED, 8))
    prompt = prompt_tokens(12)
    tokens = autoregressive(graphed, prompt, Limits(12), Sampler()).tokens
    made = self_speculative(graphed, prompt, Limits(12, frozenset({tokens[4]})), Sampler(), draft)
    end = tokens.index(tokens[4])
    assert made.tokens == tokens[: end + 1]
    assert made.stop_reason == "eos"
    assert num_drafted(made.rounds) <= end + 1


def test_graphs_for_the_lookups_longest_draft_are_captured_ahead(loaded: LoadedModel) -> None:
    runner = GraphedRunner(loaded)
    runner.set_draft(Draft(SkipSet.empty(4), DraftPolicy(PolicyKind.FIXED, 2), sources=(NgramLookup(max_tokens=9),)))
    runner.reserve(100)
    held = runner.num_graphs
    prefill(runner, prompt_tokens(10))
    runner.forward(prompt_tokens(10))
    assert runner.num_graphs == held


@pytest.mark.parametrize("kind", RUNNERS)
@pytest.mark.parametrize("policy", [PolicyKind.FIXED, PolicyKind.COST_AWARE])
def test_the_longest_drafts_and_the_most_tries_leave_the_output_as_it_is(
    tiny_llama_dir: Path, kind: str, policy: PolicyKind
) -> None:
    runner, prompt, limits = RUNNERS[kind](load(tiny_llama_dir)), prompt_tokens(8) * 2, Limits(60)
    sure = AcceptancePrior(0.99, (0.99,) * (len(CONFIDENCE_EDGES) + 1))
    rule = DraftPolicy(policy, LONGEST_SEARCHED, 0.0, credit=99.0, prior=sure)
    draft = Draft(SkipSet.empty(4), rule, sources=(NgramLookup(),))
    costs = StepCosts(1.0, 0.1, (1.0,) * (LONGEST_SEARCHED + 1))
    made = self_speculative(runner, prompt, limits, Sampler(), draft, costs)
    assert made.tokens == autoregressive(runner, prompt, limits, Sampler()).tokens
    assert max(one.num_drafted for one in made.rounds) == LONGEST_SEARCHED
