"""Decoding where the table of test_lossless.py does not look: long drafts, full contexts, and what policies decide."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind, Round, Source
from selfspec_tune.draft.decisions import RuleState, fresh_state
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Sampler, autoregressive, self_speculative
from selfspec_tune.errors import PromptError, UsageError
from tests import kit
from tests.engine_kit import (
    RUNNERS,
    TableRunner,
    chain,
    check_record,
    load,
    prompt_tokens,
)
from tests.runs import accepted_of, counts_of, drafted_of

GREEDY = Sampler()
SOME = SkipSet(4, (1, 3), (2,))


@pytest.mark.parametrize("name", [name for name in RUNNERS if name != "reference"])
@pytest.mark.parametrize("skip_set", [SkipSet.empty(4), SkipSet(4, (2,))], ids=str)
def test_long_drafts_stay_lossless(tiny_llama_dir: Path, name: str, skip_set: SkipSet) -> None:
    """40 tokens: verified through the attention of long prompts, and by the kernels in two passes."""
    runner = RUNNERS[name](load(tiny_llama_dir, "bfloat16" if name == "native" else "float32"))
    limits, prompt = Limits(60), prompt_tokens(30, seed=7)
    draft = Draft(skip_set, DraftPolicy(PolicyKind.FIXED, 40))
    plain = autoregressive(runner, prompt, limits, GREEDY)
    speculative = self_speculative(runner, prompt, limits, GREEDY, draft)
    check_record(speculative, limits, draft)
    assert speculative.tokens == plain.tokens
    assert max(drafted_of(speculative.rounds)) == 40
    if skip_set.is_empty:
        assert accepted_of(speculative.rounds) == drafted_of(speculative.rounds)


def test_plain_decoding_has_no_rounds() -> None:
    generation = autoregressive(TableRunner(chain(8, 5.0)), [1, 2, 3], Limits(5), GREEDY)
    assert (generation.rounds, generation.draft_seconds) == ([], 0.0)
    assert generation.verify_seconds == generation.decode_seconds


@pytest.mark.parametrize("name", RUNNERS)
def test_an_answer_that_cannot_fit_the_context_is_refused_before_it_starts(tmp_path: Path, name: str) -> None:
    runner, prompt = RUNNERS[name](load(kit.tiny_llama(tmp_path, context=64))), prompt_tokens(40)
    limits, draft = Limits(24), Draft(SOME, DraftPolicy(PolicyKind.FIXED, 8))
    plain = autoregressive(runner, prompt, limits, GREEDY)
    assert self_speculative(runner, prompt, limits, GREEDY, draft).tokens == plain.tokens
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
    rounds = self_speculative(runner, [0], Limits(11), GREEDY, draft).rounds
    assert counts_of(rounds) == [Round(4, 4, Source.MODEL, 4, 0)] * 2


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
    draft = Draft(SOME, DraftPolicy(kind, 3, 0.4), vocabulary=64)
    assert Draft.from_dict(SOME, draft.to_dict()) == draft
    assert Draft.from_dict(SOME, {}) == Draft(SOME)
