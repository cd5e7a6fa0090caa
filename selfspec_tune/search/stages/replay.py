"""What a draft policy would do along a trace, in pure functions.

A trace is what a teacher-forced pass of the draft says at every position of a known
text. Replaying the policy over it yields the counts of a real run without decoding; the
cost model turns counts into a predicted speedup.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

from selfspec_tune.draft import (
    CONFIDENCE_EDGES,
    LONGEST_SEARCHED,
    AcceptancePrior,
    DraftPolicy,
    DraftSource,
    PolicyKind,
    PolicyState,
    Round,
    Source,
)
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.decisions import fresh_state
from selfspec_tune.draft.source import begin, common_prefix
from selfspec_tune.engine.teacher_forcing import Trace, Window

DRAFT_LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, LONGEST_SEARCHED)
EXIT_THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_PRIOR_STRENGTH = 4.0  # positions that each interval's own confidence counts for


@dataclass(frozen=True, slots=True)
class Finding:
    """What a source found at a position of a known text, and how many of its tokens, from the first, were right.

    ``source`` and ``draft_tokens`` as in `Found`.
    """

    num_found: int = 0
    match_length: int = 0
    num_right: int = 0
    source: str = Source.PLAIN
    draft_tokens: int = 0


NOT_FOUND = Finding()


def replay(
    trace: Trace,
    policy: DraftPolicy,
    costs: StepCosts | None = None,
    findings: Sequence[Sequence[Finding]] | None = None,
    sources: Sequence[DraftSource] = (),
    answer_tokens: int = 0,
) -> list[Round]:
    """Run ``policy`` over every window of ``trace``.

    ``findings`` say what ``sources`` find at every position of every window. A generation goes
    on over further windows until it has ``answer_tokens``: policies that learn are seen as long as
    in real answers, not as in so many beginnings. 0: each window is a generation. Raises
    ValueError for a cost-aware policy without ``costs``.
    """
    rounds: list[Round] = []
    state, num_tokens = None, 0
    depths = (trace, *trace.later)
    found = findings if findings is not None else [[NOT_FOUND] * len(match) for match in trace.matches]
    matches = zip(*(one.matches for one in depths), strict=True)
    confidences = zip(*(one.confidences for one in depths), strict=True)
    leads = zip(*(one.leads for one in depths), strict=True)
    for match, confidence, lead, along in zip(matches, confidences, leads, found, strict=True):
        if state is None or num_tokens >= answer_tokens:
            state, num_tokens = fresh_state(policy, costs, sources=sources), 0
        window = _Window(match, lead if state.uses_lead else confidence, along)
        rounds += _replay_window(state, window)
        num_tokens += len(along)
    return rounds


@dataclass(frozen=True, slots=True)
class _Window:
    """Traces of one window by depth, and what is found along it."""

    match: Sequence[Sequence[bool]]
    sureness: Sequence[Sequence[float]]
    findings: Sequence[Finding]

    def matches(self, begun: int, drafted: int) -> bool:
        """Whether a draft begun at position ``begun`` is right after ``drafted`` tokens that were."""
        return self.match[min(drafted, len(self.match) - 1)][begun + drafted]

    def sureness_of(self, begun: int, drafted: int) -> float:
        """The same of how sure it is of its token."""
        return self.sureness[min(drafted, len(self.sureness) - 1)][begun + drafted]

    def guesses(self, begun: int, drafted: int, most: int, state: PolicyState) -> tuple[int, int]:
        """How many tokens the pass after ``drafted`` tries, and how many come out of it beside its own: those right."""
        found = self.findings[begun + drafted]
        if not found.num_found:
            return 0, 0
        tried = min(found.num_found, found.draft_tokens, most)
        tried = state.num_guesses(tried, found.match_length, found.source) if tried > 0 else 0
        right = min(found.num_right, tried)
        return tried, next((n for n in range(right) if not self.matches(begun, drafted + n)), right)


def _replay_window(state: PolicyState, window: _Window) -> Iterator[Round]:
    position, last = 0, len(window.findings)
    while position < last:
        found = window.findings[position]
        plan = state.begin(last - position, found.num_found, found.match_length, found.source)
        if plan.source is Source.MODEL:
            round_ = _replay_draft(state, window, position, plan.num_tokens)
        else:
            round_ = Round(plan.num_tokens, min(found.num_right, plan.num_tokens), plan.source, 0, 0)
        state.update(round_, min(found.num_right, round_.num_tokens))
        position += round_.num_tokens
        yield round_


def _replay_draft(state: PolicyState, window: _Window, position: int, most: int) -> Round:
    """The round that the model drafts from ``position``.

    After a wrong token nobody knows what a source would find: every further one takes a pass.
    """
    drafted = accepted = passes = guesses = ahead = 0
    agrees = True
    while drafted < most:
        if ahead:
            ahead -= 1
        else:
            passes += 1
            tried, ahead = window.guesses(position, drafted, most - drafted - 1, state) if agrees else (0, 0)
            guesses += tried
        agrees = agrees and window.matches(position, drafted)
        accepted += agrees
        sureness = window.sureness_of(position, drafted)
        drafted += 1
        if not state.wants_more(drafted, sureness, ahead):
            break
    return Round(drafted, accepted, Source.MODEL, passes, guesses)


def acceptance_prior(trace: Trace) -> AcceptancePrior:
    """What a trace tells a cost-aware policy to expect of all tokens of a draft alike.

    By their leads; where it has few positions, acceptance equals these.
    """
    bounds = (0.0, *CONFIDENCE_EDGES, 1.0)
    rights = [_PRIOR_STRENGTH * (low + high) / 2 for low, high in pairwise(bounds)]
    counts = [_PRIOR_STRENGTH] * len(rights)
    windows = [pair for one in (trace, *trace.later) for pair in zip(one.matches, one.leads, strict=True)]
    flat = [pair for window in windows for pair in zip(*window, strict=True)]
    for match, lead in flat:
        index = bisect_right(CONFIDENCE_EDGES, lead)
        rights[index] += match
        counts[index] += 1
    rates = tuple(round(right / count, 4) for right, count in zip(rights, counts, strict=True))
    return AcceptancePrior(round(sum(match for match, _ in flat) / len(flat), 4), rates, by_lead=True)


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
    trace: Trace,
    steps: StepCosts,
    grid: Sequence[DraftPolicy],
    findings: Sequence[Sequence[Finding]] | None = None,
    sources: Sequence[DraftSource] = (),
    answer_tokens: int = 0,
) -> tuple[DraftPolicy, float]:
    """The policy with the highest predicted speedup, and that speedup; the rest as in `replay`."""
    replays = (replay(trace, policy, steps, findings, sources, answer_tokens) for policy in grid)
    scored = ((steps.speedup(rounds), index) for index, rounds in enumerate(replays))
    speedup, index = max(scored, key=lambda pair: (pair[0], -pair[1]))
    return grid[index], speedup


def find_along(window: Window, sources: Sequence[DraftSource]) -> list[Finding]:
    """What ``sources``, one at least, find at each position of ``window`` from all the text before it."""
    context = begin(sources, window.tokens[: window.start])
    assert context is not None
    findings = []
    for position in range(window.start, window.end):
        context.extend(window.tokens[position : position + 1])
        found = context.find()
        num_right = common_prefix(found.tokens, window.tokens[position + 1 : window.end + 1])
        findings.append(Finding(len(found.tokens), found.match_length, num_right, found.source, found.draft_tokens))
    return findings
