"""Speculative decoding against plain decoding and ``model.generate``, greedy and in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind, Round, Source
from selfspec_tune.draft.decisions import RuleState, fresh_state
from selfspec_tune.draft.rounds import num_accepted, num_tokens
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, RawGeneration, Runner, Sampler, autoregressive, self_speculative
from selfspec_tune.engine.runner import Scores
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.errors import PromptError, UsageError
from selfspec_tune.models import LoadedModel
from tests import kit
from tests.covering import cover
from tests.engine_kit import (
    RUNNERS,
    TableRunner,
    chain,
    check_record,
    check_times,
    hf_generate,
    kind_of,
    load,
    policies,
    prompt_tokens,
)
from tests.runs import accepted_of, drafted_of

GREEDY = Sampler()
CHECKPOINTS = ["tiny_llama_dir", "tiny_qwen2_dir"]
arms = partial(cover, indirect=["subject", "runner"], subject=CHECKPOINTS, runner=list(RUNNERS))
SKIP_SETS = {
    "nothing": SkipSet.empty(4),
    "a little": SkipSet(4, (2,)),
    "some": SkipSet(4, (1, 3), (2,)),
    "every attention": SkipSet(4, (0, 1, 2, 3)),
    "all but the first layer": SkipSet(4, (1, 2, 3), (1, 2, 3)),
    "everything": SkipSet(4, (0, 1, 2, 3), (0, 1, 2, 3)),
}


class Subject:
    """A loaded model, its runners, and what ``model.generate`` says."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.runners: dict[str, Runner] = {name: make(loaded) for name, make in RUNNERS.items()}
        self._expected = cache(lambda prompt, limits: hf_generate(loaded, prompt, limits))

    def expected(self, prompt: Sequence[int], limits: Limits) -> list[int]:
        tokens: list[int] = self._expected(tuple(prompt), limits)
        return tokens


@pytest.fixture(scope="module", params=CHECKPOINTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return Subject(load(request.getfixturevalue(request.param)))


@pytest.fixture(params=RUNNERS)
def runner(subject: Subject, request: pytest.FixtureRequest) -> Runner:
    return subject.runners[request.param]


def _decode_both(
    runner: Runner, prompt: Sequence[int], limits: Limits, draft: Draft
) -> tuple[RawGeneration, RawGeneration]:
    """Plain and speculative; the speculative record is checked."""
    plain = autoregressive(runner, prompt, limits, GREEDY)
    check_times(plain)
    speculative = self_speculative(runner, prompt, limits, GREEDY, draft)
    check_record(speculative, limits, draft)
    assert speculative.stop_reason == plain.stop_reason
    return plain, speculative


@arms(policy=policies(max_draft_tokens=4, exit_threshold=0.3))
def test_an_empty_skip_set_accepts_every_draft(subject: Subject, runner: Runner, policy: DraftPolicy) -> None:
    limits = Limits(24)
    for seed in range(3):
        prompt = prompt_tokens(10, seed)
        generation = self_speculative(runner, prompt, limits, GREEDY, Draft(SKIP_SETS["nothing"], policy))
        assert accepted_of(generation.rounds) == drafted_of(generation.rounds)
        assert num_accepted(generation.rounds) > 0
        assert generation.tokens == subject.expected(prompt, limits)


@arms(skipped=list(SKIP_SETS), policy=policies(max_draft_tokens=4, exit_threshold=0.25))
def test_speculative_decoding_gives_the_tokens_of_plain_decoding_and_of_generate(
    subject: Subject, runner: Runner, skipped: str, policy: DraftPolicy
) -> None:
    limits = Limits(16, frozenset(subject.loaded.eos_token_ids))
    draft = Draft(SKIP_SETS[skipped], policy)
    for seed, length in enumerate([1, 9, 40] if runner.name == "fast" else [9]):
        prompt = prompt_tokens(length, seed)
        plain, speculative = _decode_both(runner, prompt, limits, draft)
        assert plain.tokens == speculative.tokens == subject.expected(prompt, limits)


def test_long_drafts_and_long_answers_stay_lossless(subject: Subject) -> None:
    limits, prompt = Limits(90), prompt_tokens(30, seed=7)
    draft = Draft(SKIP_SETS["a little"], DraftPolicy(PolicyKind.FIXED, 40))
    plain, speculative = _decode_both(subject.runners["fast"], prompt, limits, draft)
    assert plain.tokens == speculative.tokens == subject.expected(prompt, limits)
    assert max(drafted_of(speculative.rounds)) == 40  # verified through the attention of long prompts
    empty = replace(draft, skip_set=SKIP_SETS["nothing"])
    generation = self_speculative(subject.runners["fast"], prompt, limits, GREEDY, empty)
    assert accepted_of(generation.rounds) == drafted_of(generation.rounds)
    assert generation.tokens == plain.tokens


@arms(skipped=["nothing", "some"], policy=policies(max_draft_tokens=5, exit_threshold=0.1))
def test_both_arms_end_with_the_end_of_sequence_wherever_it_comes(
    subject: Subject, runner: Runner, skipped: str, policy: DraftPolicy
) -> None:
    prompt = prompt_tokens(12, seed=5)
    text = subject.expected(prompt, Limits(14))
    first_places = [i for i, token in enumerate(text) if token not in text[:i]]
    assert len(first_places) >= 8
    in_a_draft = 0
    for place in first_places if runner.name == "fast" else first_places[:6]:
        limits = Limits(14, frozenset({text[place], 10_000}))
        plain, speculative = _decode_both(runner, prompt, limits, Draft(SKIP_SETS[skipped], policy))
        assert plain.tokens == speculative.tokens == subject.expected(prompt, limits) == text[: place + 1]
        assert speculative.stop_reason == "eos"
        in_a_draft += num_tokens(speculative.rounds) == len(speculative.tokens)
    if skipped == "nothing":
        assert in_a_draft >= 3


@arms(skipped=list(SKIP_SETS), policy=policies(max_draft_tokens=6, exit_threshold=0.0))
def test_short_answers_draft_no_more_than_they_can_use(
    subject: Subject, runner: Runner, skipped: str, policy: DraftPolicy
) -> None:
    prompt = prompt_tokens(8, seed=2)
    for max_new_tokens, first_draft in [(1, []), (2, [0]), (3, [1])]:
        limits = Limits(max_new_tokens)
        plain, speculative = _decode_both(runner, prompt, limits, Draft(SKIP_SETS[skipped], policy))
        assert plain.tokens == speculative.tokens == subject.expected(prompt, limits)
        assert drafted_of(speculative.rounds)[:1] == first_draft
        assert speculative.stop_reason == "length"


@pytest.mark.parametrize("vocabulary", [3, 40, 128, 1000])
def test_a_draft_vocabulary_stays_lossless_and_drafts_nothing_outside(
    tiny_llama_dir: Path, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject(load(tiny_llama_dir))
    verified: list[list[int]] = []

    class Recording(FastRunner):
        def forward(self, tokens: Sequence[int], **how: Any) -> Scores:
            if kind_of(tokens, **how) == "verification":
                verified.append(list(tokens))
            return super().forward(tokens, **how)

    limits, prompt = Limits(24), prompt_tokens(8, seed=4)
    for policy in policies(max_draft_tokens=3, exit_threshold=0.2):
        draft = Draft(SKIP_SETS["a little"], policy, vocabulary=vocabulary)
        for runner in (Recording(subject.loaded), subject.runners["reference"]):
            _, speculative = _decode_both(runner, prompt, limits, draft)
            assert speculative.tokens == subject.expected(prompt, limits)
    drafted = [token for tokens in verified for token in tokens[1:]]
    assert drafted
    assert all(token < vocabulary for token in drafted)


def test_one_generation_leaves_nothing_behind_for_the_next(subject: Subject, runner: Runner) -> None:
    limits, draft = Limits(12), Draft(SKIP_SETS["some"], DraftPolicy(PolicyKind.ADAPTIVE, 3, 0.3))
    first = self_speculative(runner, prompt_tokens(30), limits, GREEDY, draft)
    self_speculative(runner, prompt_tokens(5, seed=1), limits, GREEDY, Draft(SKIP_SETS["everything"]))
    again = self_speculative(runner, prompt_tokens(30), limits, GREEDY, draft)
    assert (again.tokens, again.rounds) == (first.tokens, first.rounds)


def test_plain_decoding_has_no_rounds(subject: Subject, runner: Runner) -> None:
    generation = autoregressive(runner, prompt_tokens(6), Limits(5), GREEDY)
    assert (generation.rounds, generation.draft_seconds) == ([], 0.0)
    assert generation.verify_seconds == generation.decode_seconds


@pytest.mark.parametrize("name", RUNNERS)
def test_an_answer_that_cannot_fit_the_context_is_refused_before_it_starts(tmp_path: Path, name: str) -> None:
    loaded = load(kit.tiny_llama(tmp_path, context=64))
    runner, prompt = RUNNERS[name](loaded), prompt_tokens(40)
    limits = Limits(24)
    _, speculative = _decode_both(runner, prompt, limits, Draft(SKIP_SETS["some"], DraftPolicy(PolicyKind.FIXED, 8)))
    assert speculative.tokens == hf_generate(loaded, prompt, limits)
    with pytest.raises(PromptError, match="need 65 positions"):
        autoregressive(runner, prompt, Limits(25), GREEDY)


# -- policies ----------------------------------------------------------------------------------------------------

SURE, UNSURE = 8.0, 3.0  # logits over seven zeros: probabilities .998 and .74


def _unsure_after(*tokens: int) -> Tensor:
    return chain(8, [UNSURE if token in tokens else SURE for token in range(8)])


def test_a_draft_stops_after_the_first_unlikely_token_which_is_still_verified() -> None:
    runner = TableRunner(_unsure_after(3))
    draft = Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.THRESHOLD, 6, 0.9))
    generation = self_speculative(runner, [0], Limits(12), GREEDY, draft)
    assert generation.tokens == [1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4]
    # Token 4 is the unlikely one: drafted, verified, accepted, and the last of its round.
    assert runner.verified[0] == [1, 2, 3, 4]
    assert drafted_of(generation.rounds) == [3, 6]
    assert accepted_of(generation.rounds) == [3, 6]


def test_an_unlikely_token_that_was_wrong_is_replaced_by_the_models() -> None:
    target, guess = _unsure_after(), _unsure_after()
    guess[:, 2] = chain(8, UNSURE, step=3)[:, 2]
    runner = TableRunner(target, guess)
    draft = Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.THRESHOLD, 6, 0.9))
    generation = self_speculative(runner, [0], Limits(6), GREEDY, draft)
    assert runner.verified[0] == [1, 2, 5]
    assert (generation.rounds[0].num_drafted, generation.rounds[0].num_accepted) == (2, 1)
    assert generation.tokens == [1, 2, 3, 4, 5, 6]


def test_a_probability_at_the_threshold_is_high_enough() -> None:
    state = fresh_state(DraftPolicy(PolicyKind.THRESHOLD, 2, 0.5))
    assert state.wants_more(1, 0.5)
    assert not state.wants_more(1, 0.4999)
    assert not state.wants_more(2, 1.0)


def test_a_fixed_draft_ignores_probabilities() -> None:
    runner = TableRunner(chain(8, 0.5))
    draft = Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.FIXED, 4, exit_threshold=1.0))
    assert self_speculative(runner, [0], Limits(11), GREEDY, draft).rounds == [Round(4, 4, Source.MODEL, 4, 0)] * 2


def test_a_draft_ends_with_an_end_of_sequence_token() -> None:
    runner = TableRunner(chain(8, SURE))
    draft = Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.FIXED, 6))
    generation = self_speculative(runner, [0], Limits(20, frozenset({4})), GREEDY, draft)
    assert runner.verified == [[1, 2, 3, 4]]
    assert (generation.tokens, generation.stop_reason) == ([1, 2, 3, 4], "eos")


def test_an_end_of_sequence_that_only_the_draft_saw_ends_nothing() -> None:
    runner = TableRunner(chain(8, SURE), chain(8, SURE, step=2))
    draft = Draft(SkipSet.empty(1), DraftPolicy(PolicyKind.FIXED, 6))
    generation = self_speculative(runner, [0], Limits(5, frozenset({7})), GREEDY, draft)
    assert runner.verified[0] == [1, 3, 5, 7]
    assert (generation.tokens, generation.stop_reason) == ([1, 2, 3, 4, 5], "length")


def test_the_adaptive_threshold_follows_a_sequence_computed_by_hand() -> None:
    """m ← .5 m + .5 a/d; new = th + .01 if m < .9, th at full length, else th - .01; th ← .9 th + .1 new."""
    state = RuleState(DraftPolicy(PolicyKind.ADAPTIVE, max_draft_tokens=6, exit_threshold=0.6))
    rounds = [
        (6, 6, 0.5, 0.601),
        (6, 6, 0.75, 0.602),
        (6, 6, 0.875, 0.603),
        (6, 6, 0.9375, 0.603),  # accepted, at full length: the threshold stays
        (3, 3, 0.96875, 0.602),  # accepted, stopped by the threshold: it falls
        (0, 4, 0.484375, 0.603),
        (0, 0, 0.484375, 0.603),  # nothing was drafted, nothing is learned
        (2, 4, 0.4921875, 0.604),
    ]
    for accepted, drafted, acceptance, threshold in rounds:
        state.update(Round(drafted, accepted))
        assert state.acceptance == pytest.approx(acceptance, abs=1e-12)
        assert state.threshold == pytest.approx(threshold, abs=1e-12)


def test_only_an_adaptive_threshold_moves() -> None:
    for kind in (PolicyKind.FIXED, PolicyKind.THRESHOLD):
        state = RuleState(DraftPolicy(kind, exit_threshold=0.6))
        state.update(Round(6, 0))
        assert (state.threshold, state.acceptance) == (0.6, 0.0)


def test_decoding_feeds_the_adaptive_threshold_and_obeys_it() -> None:
    """Probability .74 of each draft, all wrong: the threshold climbs from .6 over it after one round."""
    runner = TableRunner(chain(8, UNSURE), chain(8, UNSURE, step=2))
    policy = DraftPolicy(PolicyKind.ADAPTIVE, 3, 0.6, step=0.15, acceptance_momentum=0.0, threshold_momentum=0.0)
    generation = self_speculative(runner, [0], Limits(5), GREEDY, Draft(SkipSet.empty(1), policy))
    assert drafted_of(generation.rounds) == [3, 1, 1, 0]
    assert accepted_of(generation.rounds) == [0, 0, 0, 0]


def test_however_high_the_threshold_has_climbed_a_round_drafts_at_least_one_token() -> None:
    """Self-SD's rule has no clamp; without a draft there would be nothing to bring the threshold down again."""
    state = RuleState(DraftPolicy(PolicyKind.ADAPTIVE, 6, exit_threshold=1.0))
    state.update(Round(1, 0))
    assert state.threshold > 1.0
    assert state.begin(room=4).num_tokens == 4
    assert not state.wants_more(1, 1.0)


def test_a_policy_refuses_values_that_mean_nothing() -> None:
    with pytest.raises(UsageError, match="max_draft_tokens is 0"):
        DraftPolicy(max_draft_tokens=0)
    with pytest.raises(UsageError, match=r"exit_threshold is 1\.5"):
        DraftPolicy(exit_threshold=1.5)


@pytest.mark.parametrize("kind", PolicyKind)
def test_a_draft_survives_its_file_form(kind: PolicyKind) -> None:
    draft = Draft(SKIP_SETS["some"], DraftPolicy(kind, 3, 0.4), vocabulary=64)
    assert Draft.from_dict(SKIP_SETS["some"], draft.to_dict()) == draft
    assert Draft.from_dict(SKIP_SETS["some"], {}) == Draft(SKIP_SETS["some"])
