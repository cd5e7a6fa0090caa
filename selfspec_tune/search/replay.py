"""What a draft policy would do along a trace, in pure functions.

A trace is what one teacher-forced pass of the draft says at every position of a known
text. Replaying the policy over it yields the counts of a real run without decoding; the
cost model turns counts into a predicted speedup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from selfspec_tune.costs import Counts, StepCosts
from selfspec_tune.draft import DraftPolicy, PolicyKind

DRAFT_LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16)
EXIT_THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def replay(matches: Sequence[Sequence[bool]], confidences: Sequence[Sequence[float]], policy: DraftPolicy) -> Counts:
    """Run ``policy`` over every window of a trace, one generation a window.

    Position i of a window says whether the token drafted after it matches, and how
    probable the draft found it.
    """
    counts = Counts()
    for match, confidence in zip(matches, confidences, strict=True):
        state, position, last = policy.start(), 0, len(match)
        while position < last:
            drafted, accepted, probability, agrees = 0, 0, 1.0, True
            while position + drafted < last and state.wants_more(drafted, probability):
                probability = confidence[position + drafted]
                agrees = agrees and match[position + drafted]
                accepted += agrees
                drafted += 1
            counts.drafted.append(drafted)
            counts.accepted.append(accepted)
            state.update(accepted, drafted)
            position += accepted + 1
    return counts


def policies(
    kind: PolicyKind, lengths: Sequence[int] = DRAFT_LENGTHS, thresholds: Sequence[float] = EXIT_THRESHOLDS
) -> Iterator[DraftPolicy]:
    """The grid of policies of one kind that replaying chooses from."""
    if kind is PolicyKind.FIXED:
        thresholds = (0.0,)
    for length, threshold in product(lengths, thresholds):
        yield DraftPolicy(kind, max_draft_tokens=length, exit_threshold=threshold)


def best_policy(
    matches: Sequence[Sequence[bool]],
    confidences: Sequence[Sequence[float]],
    steps: StepCosts,
    grid: Sequence[DraftPolicy],
) -> tuple[DraftPolicy, float]:
    """The policy with the highest predicted speedup, and that speedup."""
    scored = ((steps.speedup(replay(matches, confidences, policy)), i) for i, policy in enumerate(grid))
    speedup, index = max(scored, key=lambda pair: (pair[0], -pair[1]))
    return grid[index], speedup
