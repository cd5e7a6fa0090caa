"""What a draft policy would do along a trace, in pure functions.

A trace is what one teacher-forced pass of the draft says at every position of a known
text. Replaying the policy over it yields the counts of a real run without decoding; the
cost model turns counts into a predicted speedup.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

from selfspec_tune.costs import Counts, StepCosts
from selfspec_tune.draft import CONFIDENCE_EDGES, AcceptancePrior, DraftPolicy, NgramLookup, PolicyKind, Source
from selfspec_tune.policies import PolicyState, start

DRAFT_LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
EXIT_THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_PRIOR_STRENGTH = 4.0  # positions that each interval's own confidence counts for


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What a lookup found at a position of a known text, and how many of its tokens, from the first, were right."""

    num_found: int = 0
    match_length: int = 0
    num_right: int = 0


NOT_FOUND = LookedUp()


def replay(
    matches: Sequence[Sequence[bool]],
    confidences: Sequence[Sequence[float]],
    policy: DraftPolicy,
    costs: StepCosts | None = None,
    lookups: Sequence[Sequence[LookedUp]] | None = None,
    ngram: NgramLookup | None = None,
    answer_tokens: int = 0,
) -> Counts:
    """Run ``policy`` over every window of a trace.

    Position i of a window says whether the token drafted after it matches, and how
    probable the draft found it; ``lookups`` say what ``ngram`` finds there. A generation goes
    on over further windows until it has ``answer_tokens``: policies that learn are seen as long as
    in real answers, not as in so many beginnings. 0: each window is a generation. Raises
    ValueError for a cost-aware policy without ``costs``.
    """
    counts, state, num_tokens = Counts(), None, 0
    found = lookups if lookups is not None else [[NOT_FOUND] * len(match) for match in matches]
    draft_tokens = 0 if ngram is None else ngram.draft_tokens
    for match, confidence, looked_up in zip(matches, confidences, found, strict=True):
        window = _Window(match, confidence, looked_up, draft_tokens)
        if state is None or num_tokens >= answer_tokens:
            state, num_tokens = start(policy, costs, ngram=ngram), 0
        _replay_window(counts, state, window)
        num_tokens += len(match)
    return counts


@dataclass(frozen=True, slots=True)
class _Window:
    """A trace of one window, and what the lookup finds along it; ``draft_tokens`` as in `NgramLookup`."""

    match: Sequence[bool]
    confidence: Sequence[float]
    lookups: Sequence[LookedUp]
    draft_tokens: int

    def guesses(self, position: int, most: int, state: PolicyState) -> tuple[int, int]:
        """How many tokens the pass at ``position`` tries, and how many come out of it beside its own: those right."""
        found = self.lookups[position]
        tried = min(found.num_found, self.draft_tokens, most)
        tried = state.num_guesses(tried, found.match_length) if tried > 0 else 0
        right = min(found.num_right, tried)
        return tried, next((n for n in range(right) if not self.match[position + n]), right)


def _replay_window(counts: Counts, state: PolicyState, window: _Window) -> None:
    position, last = 0, len(window.match)
    while position < last:
        found = window.lookups[position]
        plan = state.begin(last - position, found.num_found, found.match_length)
        drafted = accepted = passes = guesses = 0
        if plan.source is Source.NGRAM:
            drafted, accepted = plan.num_tokens, min(found.num_right, plan.num_tokens)
        elif plan.source is Source.MODEL:
            drafted, accepted, passes, guesses = _replay_draft(state, window, position, plan.num_tokens)
        counts.drafted.append(drafted)
        counts.accepted.append(accepted)
        counts.sources.append(plan.source.value)
        counts.passes.append(passes)
        counts.guesses.append(guesses)
        state.update(accepted, drafted, min(found.num_right, accepted + 1), passes, guesses)
        position += accepted + 1


def _replay_draft(state: PolicyState, window: _Window, position: int, most: int) -> tuple[int, int, int, int]:
    """Tokens drafted by the model from ``position``, those accepted, the passes that it took and what these tried.

    After a wrong token nobody knows what the lookup would find: every further one takes a pass.
    """
    drafted = accepted = passes = guesses = ahead = 0
    agrees = True
    while drafted < most:
        here = position + drafted
        if ahead:
            ahead -= 1
        else:
            passes += 1
            tried, ahead = window.guesses(here, most - drafted - 1, state) if agrees else (0, 0)
            guesses += tried
        agrees = agrees and window.match[here]
        accepted += agrees
        drafted += 1
        if not state.wants_more(drafted, window.confidence[here], ahead):
            break
    return drafted, accepted, passes, guesses


def acceptance_prior(matches: Sequence[Sequence[bool]], confidences: Sequence[Sequence[float]]) -> AcceptancePrior:
    """What a trace tells a cost-aware policy to expect; where it has few positions, acceptance equals confidence."""
    bounds = (0.0, *CONFIDENCE_EDGES, 1.0)
    rights = [_PRIOR_STRENGTH * (low + high) / 2 for low, high in pairwise(bounds)]
    counts = [_PRIOR_STRENGTH] * len(rights)
    flat = [pair for window in zip(matches, confidences, strict=True) for pair in zip(*window, strict=True)]
    for match, confidence in flat:
        index = bisect_right(CONFIDENCE_EDGES, confidence)
        rights[index] += match
        counts[index] += 1
    by_confidence = tuple(round(right / count, 4) for right, count in zip(rights, counts, strict=True))
    return AcceptancePrior(round(sum(match for match, _ in flat) / len(flat), 4), by_confidence)


def with_prior(policy: DraftPolicy, prior: AcceptancePrior | None) -> DraftPolicy:
    """``policy`` with ``prior`` if it is of a kind that expects anything."""
    return replace(policy, prior=prior) if policy.kind is PolicyKind.COST_AWARE else policy


def policies(
    kind: PolicyKind, lengths: Sequence[int] = DRAFT_LENGTHS, thresholds: Sequence[float] = EXIT_THRESHOLDS
) -> Iterator[DraftPolicy]:
    """The grid of policies of one kind that replaying chooses from.

    A cost-aware policy finds its own lengths: it comes with the largest as its limit.
    """
    if kind is PolicyKind.COST_AWARE:
        yield DraftPolicy(kind, max_draft_tokens=max(lengths))
        return
    if kind is PolicyKind.FIXED:
        thresholds = (0.0,)
    for length, threshold in product(lengths, thresholds):
        yield DraftPolicy(kind, max_draft_tokens=length, exit_threshold=threshold)


def best_policy(
    matches: Sequence[Sequence[bool]],
    confidences: Sequence[Sequence[float]],
    steps: StepCosts,
    grid: Sequence[DraftPolicy],
    lookups: Sequence[Sequence[LookedUp]] | None = None,
    ngram: NgramLookup | None = None,
    answer_tokens: int = 0,
) -> tuple[DraftPolicy, float]:
    """The policy with the highest predicted speedup, and that speedup; the rest as in `replay`."""
    replays = (replay(matches, confidences, policy, steps, lookups, ngram, answer_tokens) for policy in grid)
    scored = ((steps.speedup(counts), index) for index, counts in enumerate(replays))
    speedup, index = max(scored, key=lambda pair: (pair[0], -pair[1]))
    return grid[index], speedup
