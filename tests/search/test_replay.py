from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec_tune.draft import AcceptancePrior, Draft, DraftPolicy, PolicyKind, Round
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.rounds import PLAIN_ROUND, num_accepted, num_tokens
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.teacher_forcing import Trace
from selfspec_tune.search.stages.replay import (
    DRAFT_LENGTHS,
    EXIT_THRESHOLDS,
    Finding,
    acceptance_prior,
    best_policy,
    policies,
    replay,
    with_prior,
)
from tests.runs import accepted_of, drafted_of

if TYPE_CHECKING:
    from pathlib import Path

    from selfspec_tune.engine import RawGeneration
    from selfspec_tune.engine.runners.fast import FastRunner
    from selfspec_tune.models import LoadedModel

FIXED, THRESHOLD, ADAPTIVE = PolicyKind.FIXED, PolicyKind.THRESHOLD, PolicyKind.ADAPTIVE


def steps(draft: float) -> StepCosts:
    """Verifying 1, 2, 3, 4 tokens, and a draft step of ``draft`` seconds."""
    return StepCosts(1.0, draft, (1.0, 1.1, 1.2, 1.5))


STEPS = StepCosts(decode=1.0, draft=0.2, verify=(1.0, 1.05, 1.1, 1.15, 1.2))


def traced(
    matches: Sequence[Sequence[bool]], confidences: Sequence[Sequence[float]], later: tuple[Trace, ...] = ()
) -> Trace:
    """A trace whose leads are its confidences."""
    surenesses = tuple(map(tuple, confidences))
    return Trace(tuple(map(tuple, matches)), surenesses, surenesses, 0.0, later)


def replayed_window(
    match: Sequence[bool], policy: DraftPolicy, confidence: Sequence[float] | None = None
) -> list[Round]:
    return replay(traced([match], [confidence or [1.0] * len(match)]), policy)


def fixed(length: int) -> DraftPolicy:
    return DraftPolicy(FIXED, length, 0.0)


def test_a_draft_that_always_matches_is_accepted_whole() -> None:
    found = replayed_window([True] * 10, fixed(4))
    # 4 and the bonus token, twice: the window's ten positions
    assert (drafted_of(found), accepted_of(found)) == ([4, 4], [4, 4])
    assert num_tokens(found) == 10


def test_a_draft_that_never_matches_yields_one_token_a_round() -> None:
    found = replayed_window([False] * 5, fixed(3))
    assert (drafted_of(found), accepted_of(found)) == ([3, 3, 3, 2, 1], [0] * 5)
    assert num_tokens(found) == 5


def test_what_follows_a_mismatch_in_a_draft_is_not_accepted() -> None:
    found = replayed_window([True, False, True, True, True, True], fixed(4))
    assert (drafted_of(found), accepted_of(found)) == ([4, 4], [1, 4])
    assert num_tokens(found) == 7


def test_a_draft_ends_with_the_first_unlikely_token_which_is_still_verified() -> None:
    policy = DraftPolicy(THRESHOLD, 4, 0.5)
    found = replayed_window([True] * 6, policy, [0.9, 0.4, 0.9, 0.9, 0.9, 0.1])
    # round 1: 0.9, 0.4 (stop), bonus; round 2: position 3 on, 0.9, 0.9, 0.1 (stop)
    assert (drafted_of(found), accepted_of(found)) == ([2, 3], [2, 3])
    assert num_tokens(found) == 7


def test_a_probability_at_the_threshold_goes_on() -> None:
    assert drafted_of(replayed_window([True] * 3, DraftPolicy(THRESHOLD, 3, 0.5), [0.5, 0.5, 0.5])) == [3]


def test_a_draft_never_goes_past_the_end_of_its_window() -> None:
    found = replayed_window([True] * 3, fixed(8))
    assert (drafted_of(found), accepted_of(found)) == ([3], [3])


def test_a_fixed_policy_takes_no_notice_of_confidence() -> None:
    assert drafted_of(replayed_window([True] * 4, fixed(4), [0.0] * 4)) == [4]


def test_an_adaptive_threshold_rises_after_a_rejection_and_starts_anew_in_each_window() -> None:
    policy = DraftPolicy(ADAPTIVE, 2, 0.5, step=0.2, threshold_momentum=0.0)
    # Thresholds 0.5, 0.7, 0.9: in the third round 0.8 no longer reaches it.
    window, confidence = [False, False, True, True], [0.8] * 4
    found = replay(traced([window, window], [confidence, confidence]), policy)
    assert drafted_of(found) == [2, 2, 1, 2, 2, 1]
    assert accepted_of(found) == [0, 0, 1, 0, 0, 1]


def test_an_adaptive_threshold_goes_on_over_windows_until_the_answer_is_long_enough() -> None:
    policy = DraftPolicy(ADAPTIVE, 2, 0.5, step=0.2, threshold_momentum=0.0)
    window, confidence = [False, False, True, True], [0.8] * 4
    found = replay(traced([window] * 3, [confidence] * 3), policy, answer_tokens=8)
    # Thresholds 0.5, 0.7, 0.9 as above; from there on 0.8 is too little, until the third window begins anew.
    assert drafted_of(found)[:3] == [2, 2, 1]
    assert drafted_of(found)[3] == 1
    assert drafted_of(found)[-3:] == [2, 2, 1]


def test_a_cost_aware_policy_that_knows_a_good_draft_uses_it_from_the_first_token() -> None:
    # A draft of 0.6 steps a token: one of which nothing is known is taken for too bad to try.
    costs = StepCosts(1.0, 0.6, (1.0, 1.05, 1.1, 1.15, 1.2))
    trace = traced([[True] * 24] * 4, [[0.99] * 24] * 4)
    blind = DraftPolicy(PolicyKind.COST_AWARE, 4)
    informed = with_prior(blind, acceptance_prior(trace))
    assert costs.speedup(replay(trace, blind, costs)) < 1.02
    assert costs.speedup(replay(trace, informed, costs, answer_tokens=96)) > 1.2


def test_only_policies_that_expect_anything_take_a_prior() -> None:
    prior = acceptance_prior(traced([[True]], [[0.9]]))
    assert with_prior(fixed(3), prior) == fixed(3)
    assert with_prior(DraftPolicy(PolicyKind.COST_AWARE, 4), prior).prior == prior


def test_an_adaptive_threshold_above_every_probability_still_drafts_one_token() -> None:
    policy = DraftPolicy(ADAPTIVE, 2, 1.0)
    assert 0 not in drafted_of(replayed_window([False] * 3 + [True] * 20, policy))


def test_what_a_lookup_finds_is_taken_first_and_costs_no_draft_step() -> None:
    findings = [Finding(3, 2, 2, "ngram"), *[Finding()] * 6]
    found = replay(traced([[False] * 7], [[1.0] * 7]), fixed(2), findings=[findings])
    assert found[:2] == [Round(3, 2, "ngram", 0, 0), Round(2, 0, "model", 2, 0)]


def test_a_cost_aware_policy_is_not_replayed_without_costs() -> None:
    with pytest.raises(ValueError, match="needs the step costs"):
        replayed_window([True], DraftPolicy(PolicyKind.COST_AWARE))


def test_a_traces_prior_is_its_acceptance_by_lead() -> None:
    matches = [[True, True, False], [False] * 6]
    leads = [[0.9, 0.9, 0.9], [0.1] * 6]
    prior = acceptance_prior(replace(traced(matches, [[0.3] * 3, [0.3] * 6]), leads=traced(matches, leads).leads))
    assert prior.by_lead
    assert prior.mean == pytest.approx(2 / 9, abs=1e-4)
    assert prior.rates[0] == pytest.approx((0 + 4 * 0.1) / 10, abs=1e-4)
    assert prior.rates[5] == pytest.approx((2 + 4 * 0.885) / 7, abs=1e-4)
    assert prior.rates[9] == pytest.approx(0.9975, abs=1e-4)  # nothing seen: its lead


@pytest.mark.parametrize("by_lead", [True, False])
def test_a_cost_aware_policy_is_replayed_by_what_its_prior_is_of(by_lead: bool) -> None:
    """A threshold policy's rule is of the probability, whatever the lead."""
    trace = replace(traced([[True] * 24], [[0.99] * 24]), leads=((0.1,) * 24,))
    sure = AcceptancePrior(0.9, (*[0.05] * 5, *[1.0] * 5), by_lead=by_lead)
    costs = StepCosts(1.0, 0.3, (1.0, 1.05, 1.1, 1.15, 1.2))
    drafted = drafted_of(replay(trace, DraftPolicy(PolicyKind.COST_AWARE, 4, prior=sure), costs))
    assert (max(drafted) < 4) == by_lead
    assert max(drafted_of(replay(trace, DraftPolicy(PolicyKind.THRESHOLD, 4, 0.9)))) == 4


def test_a_prior_is_of_all_tokens_of_a_draft_alike() -> None:
    later = traced([[False] * 4], [[0.9] * 4])
    assert acceptance_prior(traced([[True] * 4], [[0.9] * 4], (later,))).mean == 0.5


def test_the_grid_of_a_cost_aware_policy_is_one_policy() -> None:
    assert list(policies(PolicyKind.COST_AWARE, (3, 8, 4), (0.2, 0.9))) == [DraftPolicy(PolicyKind.COST_AWARE, 8)]


def test_windows_are_replayed_one_after_another() -> None:
    found = replay(traced([[True, True], [False]], [[1.0, 1.0], [1.0]]), fixed(2))
    assert (drafted_of(found), accepted_of(found)) == ([2, 1], [2, 0])


def test_windows_and_confidences_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="zip"):
        replay(traced([[True]], []), fixed(2))


def test_a_later_token_of_a_draft_is_what_the_trace_of_its_place_says() -> None:
    third = traced([[False] * 4 + [True] * 5], [[0.3] * 4 + [0.9] * 5])
    second = traced([[True] * 9], [[0.6] * 9])
    trace = traced([[True] * 9], [[0.9] * 9], later=(second, third))
    # The first and the second token are right; the third, and any after it, from position 4 on.
    found = replay(trace, fixed(4))
    assert (drafted_of(found), accepted_of(found)) == ([4, 4, 1], [2, 4, 1])
    # Confidence in the second is too little, wherever the draft begins.
    assert drafted_of(replay(trace, DraftPolicy(THRESHOLD, 4, 0.7))) == [2, 2, 2]


def test_without_traces_of_later_places_the_first_stands_for_all() -> None:
    same = traced([[True, False, True, True]], [[0.9, 0.8, 0.7, 0.6]])
    assert replay(traced(same.matches, same.confidences, (same,)), fixed(3)) == replay(same, fixed(3))


TRACES = st.lists(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=20), min_size=1, max_size=4)
POLICIES = st.builds(
    DraftPolicy, st.sampled_from(list(PolicyKind)), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1)
)


@given(trace=TRACES, policy=POLICIES)
def test_replayed_counts_are_those_of_a_possible_run(
    trace: list[list[tuple[bool, float]]], policy: DraftPolicy
) -> None:
    matches = [[match for match, _ in window] for window in trace]
    confidences = [[confidence for _, confidence in window] for window in trace]
    found = replay(traced(matches, confidences), policy, STEPS)
    positions = sum(len(window) for window in trace)
    assert all(0 <= one.num_accepted <= one.num_drafted for one in found)
    least = 0 if policy.kind is PolicyKind.COST_AWARE else 1
    assert all(least <= drafted <= policy.max_draft_tokens for drafted in drafted_of(found))
    assert positions <= num_tokens(found) <= positions + len(trace)
    assert num_accepted(found) <= sum(sum(window) for window in matches)


@given(trace=TRACES, length=st.integers(1, 8))
def test_a_longer_fixed_draft_needs_no_more_rounds(trace: list[list[tuple[bool, float]]], length: int) -> None:
    matches = [[match for match, _ in window] for window in trace]
    confidences = [[confidence for _, confidence in window] for window in trace]
    short, long = (replay(traced(matches, confidences), fixed(n)) for n in (length, length + 1))
    assert len(long) <= len(short)


def test_the_grid_holds_every_length_with_every_threshold() -> None:
    grid = list(policies(THRESHOLD))
    assert len(grid) == len(set(grid)) == len(DRAFT_LENGTHS) * len(EXIT_THRESHOLDS)
    assert {policy.kind for policy in policies(ADAPTIVE)} == {ADAPTIVE}


def test_a_fixed_policy_has_no_threshold_to_choose() -> None:
    assert [(p.max_draft_tokens, p.exit_threshold) for p in policies(FIXED, (2, 5))] == [(2, 0.0), (5, 0.0)]


def test_the_best_policy_drafts_long_where_everything_matches() -> None:
    trace = traced([[True] * 12], [[0.9] * 12])
    policy, speedup = best_policy(trace, steps(0.1), [fixed(1), fixed(3), fixed(2)])
    assert policy == fixed(3)
    # 3 rounds of 3 drafts, each verified in 1.5: 12 tokens in 3 · 1.8
    assert speedup == pytest.approx(12 / (3 * 1.8))


def test_the_best_policy_stops_early_where_confidence_tells() -> None:
    trace = traced([[True, False] * 6], [[0.9, 0.2] * 6])
    policy, _ = best_policy(trace, steps(0.3), list(policies(THRESHOLD, (1, 4), (0.0, 0.5))))
    assert policy.max_draft_tokens == 1 or policy.exit_threshold == 0.5


def test_of_equal_policies_the_first_is_taken() -> None:
    grid = [DraftPolicy(THRESHOLD, 2, 0.3), DraftPolicy(THRESHOLD, 2, 0.1)]
    assert best_policy(traced([[True] * 4], [[0.9] * 4]), steps(0.1), grid)[0] is grid[0]


@pytest.fixture(scope="module")
def loaded(tiny_llama_dir: Path) -> LoadedModel:
    from selfspec_tune.models import load_model

    return load_model(str(tiny_llama_dir), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def runner(loaded: LoadedModel) -> FastRunner:
    from selfspec_tune.engine.runners.fast import FastRunner

    return FastRunner(loaded)


PROMPT = [5, 9, 20, 14, 7, 33]


def run_for_real(runner: FastRunner, draft: Draft, num_positions: int) -> RawGeneration:
    """A run whose first token comes from the prefill and whose drafts are capped as in a window."""
    from selfspec_tune.engine import Limits, Sampler, self_speculative

    return self_speculative(runner, PROMPT, Limits(num_positions + 2), Sampler(), draft, STEPS)


def replayed(runner: FastRunner, loaded: LoadedModel, draft: Draft, num_positions: int) -> list[Round]:
    from selfspec_tune.engine import Limits, Sampler, autoregressive
    from selfspec_tune.engine.teacher_forcing import Window, make_scorer
    from selfspec_tune.search.stages.replay import find_along

    answer = autoregressive(runner, PROMPT, Limits(num_positions + 1), Sampler()).tokens
    window = Window((*PROMPT, *answer), len(PROMPT), len(PROMPT) + num_positions)
    trace = make_scorer(runner, loaded, [window], depths=draft.policy.max_draft_tokens).trace(draft)
    findings = [find_along(window, draft.sources)] if draft.sources else None
    return replay(trace, draft.policy, STEPS, findings, draft.sources)


def check_against_reality(runner: FastRunner, loaded: LoadedModel, draft: Draft, num_positions: int) -> None:
    real, found = run_for_real(runner, draft, num_positions), replayed(runner, loaded, draft, num_positions)
    # Where the window ends between two rounds, the real run has one token left to decode plainly.
    last = [PLAIN_ROUND] if num_tokens(found) == num_positions else []
    # A replay knows the counts alone.
    assert [replace(one, certainties=(), match_length=0) for one in real.rounds] == found + last


@settings(max_examples=25, deadline=None)
@given(policy=POLICIES, num_positions=st.integers(1, 40))
def test_replaying_the_empty_skip_sets_trace_gives_a_real_runs_counts(
    runner: FastRunner, loaded: LoadedModel, policy: DraftPolicy, num_positions: int
) -> None:
    check_against_reality(runner, loaded, Draft(SkipSet.empty(4), policy), num_positions)


@settings(max_examples=25, deadline=None)
@given(
    policy=POLICIES,
    num_positions=st.integers(1, 40),
    lookup=st.builds(NgramLookup, st.just(3), st.integers(1, 2), st.integers(1, 6), st.integers(0, 5)),
)
def test_replaying_with_a_lookup_gives_a_real_runs_counts(
    runner: FastRunner, loaded: LoadedModel, policy: DraftPolicy, num_positions: int, lookup: NgramLookup
) -> None:
    check_against_reality(runner, loaded, Draft(SkipSet.empty(4), policy, sources=(lookup,)), num_positions)


@settings(max_examples=40, deadline=None)
@given(
    flags=st.lists(st.booleans(), min_size=8, max_size=8), num_positions=st.integers(1, 30), length=st.integers(1, 5)
)
def test_replaying_all_places_of_a_draft_gives_a_real_runs_counts_for_any_skip_set(
    runner: FastRunner, loaded: LoadedModel, flags: list[bool], num_positions: int, length: int
) -> None:
    check_against_reality(runner, loaded, Draft(SkipSet.from_flags(flags), fixed(length)), num_positions)
