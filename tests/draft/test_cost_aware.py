"""The cost-aware policy in model time: it never loses by more than it may, and hardly trails the best rule."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import accumulate, pairwise, product
from operator import mul
from statistics import mean

import pytest

from selfspec_tune.draft import (
    CONFIDENCE_EDGES,
    AcceptancePrior,
    DraftPolicy,
    Plan,
    PolicyKind,
    PolicyState,
    Round,
    Source,
)
from selfspec_tune.draft.cost_aware import CostAwareState, FoundAcceptance
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.decisions import fresh_state
from selfspec_tune.draft.ngram import NgramLookup
from tests.covering import cover, covering_array
from tests.policy_simulator import KINDS, LONG, decode, texts

pytestmark = pytest.mark.no_cover  # tracing its many small steps takes several times as long as they do

# Decode 1, draft, verify(k + 1): steadily dearer, or with a jump to the first batch of several tokens.
STEADY = tuple(1 + 0.04 * k for k in range(17))
JUMP = (1.0, *(1.12 + 0.03 * k for k in range(1, 17)))
COSTS = {
    "draft .25": StepCosts(1.0, 0.25, STEADY),
    "draft .4": StepCosts(1.0, 0.4, STEADY),
    "draft .9": StepCosts(1.0, 0.9, STEADY),
    "draft .33, dear verification": StepCosts(1.0, 0.33, JUMP),
}
SOURCES = {"model": False, "lookup and model": True}  # whether there is a lookup
LARGEST_LOSS = 1 / 0.97
NGRAM = NgramLookup()
SEEDS = 64
EVERY = [*KINDS, "short"]


def policy(**settings: float) -> DraftPolicy:
    return DraftPolicy(PolicyKind.COST_AWARE, 12, **settings)  # type: ignore[arg-type]


def cost_aware(costs: StepCosts, *, has_lookup: bool, model_drafts: bool = True, **settings: float) -> PolicyState:
    return fresh_state(policy(**settings), costs, sources=(NGRAM,) if has_lookup else (), model_drafts=model_drafts)


def relative_times(kind: str, costs: StepCosts, *, has_lookup: bool, **settings: float) -> list[float]:
    """Of every text of a kind: predicted time over plain decoding's."""
    return [
        decode(cost_aware(costs, has_lookup=has_lookup, **settings), text, costs, has_lookup=has_lookup) / len(text)
        for text in texts(kind, SEEDS)
    ]


def rules() -> Iterator[DraftPolicy]:
    for length in (1, 2, 4, 6, 8, 12):
        yield DraftPolicy(PolicyKind.FIXED, length)
        for threshold in (0.5, 0.7, 0.8, 0.9, 0.95):
            yield DraftPolicy(PolicyKind.THRESHOLD, length, threshold)


@cache
def best_rule(kind: str, costs: StepCosts, has_lookup: bool, seeds: int) -> float:
    """Total time of whatever turned out best on these very texts: a rule, the lookup alone, plain decoding."""
    samples = texts(kind, seeds)
    states = [lambda rule=rule: fresh_state(rule) for rule in rules()]
    if has_lookup:
        states.append(lambda: fresh_state(DraftPolicy(), model_drafts=False))
    totals = [sum(decode(make(), text, costs, has_lookup=has_lookup) for text in samples) for make in states]
    return min(*totals, float(sum(map(len, samples))))


@cover(kind=list(KINDS), costs=COSTS, has_lookup=SOURCES)
def test_no_long_answer_takes_more_than_plain_decoding_over_point_97(
    kind: str, costs: StepCosts, has_lookup: bool
) -> None:
    assert max(relative_times(kind, costs, has_lookup=has_lookup)) <= LARGEST_LOSS


@cover(kind=EVERY, costs=COSTS, has_lookup=SOURCES)
def test_without_credit_no_answer_however_short_takes_more(kind: str, costs: StepCosts, has_lookup: bool) -> None:
    assert max(relative_times(kind, costs, has_lookup=has_lookup, credit=0.0)) <= 1 / 0.98 + 1e-9


@cover(costs=COSTS, has_lookup=SOURCES)
def test_a_short_answer_loses_no_more_than_the_credit_and_most_gain(costs: StepCosts, has_lookup: bool) -> None:
    samples = texts("short", SEEDS)
    times = relative_times("short", costs, has_lookup=has_lookup)
    assert all(t * len(text) <= len(text) / 0.98 + 1.3 for t, text in zip(times, samples, strict=True))
    total = sum(t * len(text) for t, text in zip(times, samples, strict=True))
    assert total <= sum(map(len, samples))


FACTORS = (EVERY, list(COSTS.values()), list(SOURCES.values()))
CELLS = list(product(*FACTORS))
PAIRS = [
    tuple(values[number] for values, number in zip(FACTORS, row, strict=True))
    for row in covering_array([len(values) for values in FACTORS])
]


@pytest.mark.parametrize(
    "cells", [pytest.param(PAIRS, id="pairs"), pytest.param(CELLS, id="all", marks=pytest.mark.long)]
)
def test_it_comes_within_five_per_cent_of_the_best_rule_on_average(cells: list[tuple[str, StepCosts, bool]]) -> None:
    """The rule is chosen with hindsight, for each kind of text and each cost; this one policy meets them all."""
    ratios = []
    for kind, costs, has_lookup in cells:
        ours = sum(
            decode(cost_aware(costs, has_lookup=has_lookup), text, costs, has_lookup=has_lookup)
            for text in texts(kind, 16)
        )
        ratios.append(ours / best_rule(kind, costs, has_lookup, 16))
    assert mean(ratios) <= 1.03
    assert max(ratios) <= 1.2


def test_where_drafting_pays_it_gains_and_where_it_does_not_it_decodes_plainly() -> None:
    cheap, dear = COSTS["draft .25"], COSTS["draft .9"]
    assert mean(relative_times("very easy", cheap, has_lookup=False)) < 0.55
    assert mean(relative_times("copied", dear, has_lookup=True)) < 0.75
    assert mean(relative_times("hopeless", cheap, has_lookup=False)) < 1.03
    assert mean(relative_times("medium", dear, has_lookup=False)) < 1.02


def test_a_lookup_alone_never_asks_the_model_for_drafts() -> None:
    costs = StepCosts(1.0, 0.0, STEADY)
    state = cost_aware(costs, has_lookup=True, model_drafts=False)
    for _ in range(40):
        assert state.begin(20).source is Source.PLAIN
        state.update(Round())
    assert state.begin(20, 10, 4, NGRAM.name).source == NGRAM.name


def test_what_one_source_finds_says_nothing_of_another() -> None:
    state = cost_aware(COSTS["draft .25"], has_lookup=True, model_drafts=False, credit=9.0)
    for _ in range(30):
        state.begin(20, 4, 4, "wrong")
        state.update(Round())
    assert state.begin(20, 4, 4, "wrong").source is Source.PLAIN
    assert state.begin(20, 4, 4, "new").source == "new"


def _round(state: PolicyState, outcomes: list[bool], confidence: float = 0.9, room: int = 50) -> int:
    """One round of which it is known which drafts are right; how many were drafted."""
    plan = state.begin(room)
    drafted = 0
    while drafted < plan.num_tokens:
        drafted += 1
        if not state.wants_more(drafted, confidence):
            break
    right = outcomes[:drafted]
    accepted = right.index(False) if False in right else drafted
    state.update(Round(drafted, accepted))
    return drafted


def test_success_lengthens_drafts_and_failure_ends_them() -> None:
    state = cost_aware(COSTS["draft .25"], has_lookup=False)
    lengths = [_round(state, [True] * 12) for _ in range(12)]
    assert lengths[-1] > lengths[0] >= 1
    lengths = [_round(state, [False] * 12) for _ in range(40)]
    assert 0 in lengths
    assert sum(length > 0 for length in lengths[-20:]) <= 3


def test_a_draft_that_looked_bad_is_tried_again_at_growing_intervals_and_taken_up_when_it_turned_good() -> None:
    state = cost_aware(StepCosts(1.0, 0.1, STEADY), has_lookup=False)
    lengths = [_round(state, [False] * 12) for _ in range(400)]
    tried = [index for index, length in enumerate(lengths) if length]
    gaps = [later - earlier for earlier, later in pairwise(tried)]
    assert 20 <= max(gaps) <= 64
    assert gaps[-1] > gaps[0]
    lengths = [_round(state, [True] * 12) for _ in range(200)]
    assert min(lengths[-20:]) >= 4


def test_an_unsure_token_ends_a_draft_sooner_than_a_sure_one() -> None:
    costs = COSTS["draft .25"]
    sure, unsure = (cost_aware(costs, has_lookup=False) for _ in range(2))
    assert _round(sure, [True] * 12, confidence=0.99) > _round(unsure, [True] * 12, confidence=0.3) == 1


def test_a_lookup_that_keeps_failing_is_left_and_watched_until_it_is_right_again() -> None:
    state = cost_aware(COSTS["draft .25"], has_lookup=True, model_drafts=False)

    def lengths(num_right: int, rounds: int) -> list[int]:
        found = []
        for _ in range(rounds):
            length = state.begin(50, 10, 3).num_tokens
            accepted = min(length, num_right)
            state.update(Round(length, accepted), min(num_right, accepted + 1))
            found.append(length)
        return found

    assert lengths(10, 8)[-1] == 10
    failing = lengths(0, 60)
    assert failing[-1] == 0
    assert sum(failing[-30:]) == 0
    assert max(lengths(10, 10)) >= 5  # plain rounds have shown that it would have been right


def test_there_is_nothing_to_draft_without_room() -> None:
    state = cost_aware(COSTS["draft .25"], has_lookup=True)
    assert state.begin(0, 10, 8).source is Source.PLAIN
    assert state.begin(1, 10, 8).num_tokens == 1


def test_a_prior_that_promises_little_withholds_credit_and_one_that_promises_much_grants_it() -> None:
    costs = COSTS["draft .4"]
    firsts = []
    for rate in (0.2, 0.97):
        prior = AcceptancePrior(rate, (rate,) * (len(CONFIDENCE_EDGES) + 1))
        state = CostAwareState(DraftPolicy(PolicyKind.COST_AWARE, 12, prior=prior), costs)
        firsts.append(_round(state, [True] * 12, confidence=0.5))
    assert firsts[0] == 0
    assert firsts[1] >= 2


def test_a_cost_aware_policy_needs_costs() -> None:
    with pytest.raises(ValueError, match=r"pass costs=Workload\.step_costs"):
        fresh_state(policy())


def test_decisions_take_the_same_way_each_time() -> None:
    text, costs = texts("mixed", 1)[0], COSTS["draft .25"]
    times = {decode(cost_aware(costs, has_lookup=True), text, costs, has_lookup=True) for _ in range(3)}
    assert len(times) == 1
    assert len(text) == LONG


def test_only_tokens_that_save_more_than_they_add_are_tried_in_a_draft_pass() -> None:
    free = cost_aware(StepCosts(1.0, 0.25, STEADY), has_lookup=True)
    assert free.num_guesses(4, 4) == 4
    dear = cost_aware(StepCosts(1.0, 0.25, STEADY, guess=0.25), has_lookup=True)
    assert dear.num_guesses(4, 4) == 0
    # A longer match is likelier to go on.
    between = cost_aware(StepCosts(1.0, 0.25, STEADY, guess=0.1), has_lookup=True)
    assert 0 < between.num_guesses(4, 4) < between.num_guesses(10, 14)


@pytest.mark.parametrize("guess", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("match_length", [1, 2, 5, 16])
def test_a_pass_tries_as_many_tokens_as_make_its_own_cheapest(guess: float, match_length: int) -> None:
    state = cost_aware(StepCosts(1.0, 0.25, STEADY, guess=guess), has_lookup=True)
    acceptance = FoundAcceptance()
    chances = list(accumulate((acceptance.after(match_length + n) for n in range(8)), mul))
    price = [(0.25 + guess * n) / (1 + sum(chances[:n])) for n in range(9)]
    assert price[state.num_guesses(8, match_length)] == pytest.approx(min(price))


def test_found_tokens_are_drafted_where_they_promise_more_than_the_model_does() -> None:
    prior = AcceptancePrior(0.95, (0.95,) * (len(CONFIDENCE_EDGES) + 1))
    costs = StepCosts(1.0, 0.25, STEADY)
    state = CostAwareState(DraftPolicy(PolicyKind.COST_AWARE, 24, prior=prior, credit=9.0), costs, sources=(NGRAM,))
    # A match of one token is wrong too often; a long one costs no pass at all.
    assert state.begin(50, 24, 1, NGRAM.name).source is Source.MODEL
    plan = state.begin(50, 24, 16, NGRAM.name)
    assert (plan.source, plan.num_tokens) == (NGRAM.name, 24)


def test_a_rule_tries_what_a_short_match_found_and_drafts_more_of_it_the_longer_the_match() -> None:
    rule = fresh_state(DraftPolicy(PolicyKind.THRESHOLD, 6), sources=(NGRAM,))
    assert rule.begin(50, 24, 1, NGRAM.name) == Plan(Source.MODEL, 6)
    assert [rule.begin(50, 24, match, NGRAM.name).num_tokens for match in (2, 3, 16)] == [8, 12, 24]
    assert [rule.num_guesses(8, match) for match in (0, 1, 2, 16)] == [0, 1, 3, 8]
    alone = fresh_state(DraftPolicy(), sources=(NGRAM,), model_drafts=False)
    assert alone.begin(50, 24, 1, NGRAM.name) == Plan(NGRAM.name, 4)


def test_a_dear_first_step_makes_drafting_rarer() -> None:
    lengths = {}
    for cold in (0.0, 0.6):
        state = cost_aware(StepCosts(1.0, 0.25, STEADY, cold=cold), has_lookup=False)
        lengths[cold] = [_round(state, [True, False]) for _ in range(100)]
    assert sum(length > 0 for length in lengths[0.6]) < sum(length > 0 for length in lengths[0.0])
