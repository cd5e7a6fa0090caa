"""Synthetic texts of which it is known what every draft would be worth, decoded by a policy in model time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from selfspec_tune.draft import PolicyState, Round, Source
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.search.stages.replay import NOT_FOUND, Finding

LONG = 128
SHORT = (5, 30)
_LOOKED_UP = 10


@dataclass(frozen=True, slots=True)
class Position:
    """At one place: how sure the draft is of its token, whether it is right, what a lookup finds."""

    confidence: float
    matches: bool
    lookup: Finding


Text = list[Position]


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _text(
    random: Random,
    length: int,
    levels: Sequence[float],
    *,
    overconfident: float = 0.0,
    copying: float = 0.0,
    spurious: float = 0.3,
) -> Text:
    """Confidence wanders around a level that changes every 25 tokens or so; acceptance follows it.

    ``overconfident`` lowers acceptance below confidence (on the logit scale); ``copying``
    is how many copied stretches (of 20 tokens in the mean) begin in 25 tokens; ``spurious``
    how often a short match turns up by chance, seldom followed by the right tokens.
    """
    text: Text = []
    level, wander, left, grown = random.choice(levels), random.gauss(0, 1), 0, 0
    for _ in range(length):
        wander = 0.5 * wander + math.sqrt(0.75) * random.gauss(0, 1)
        if random.random() < 1 / 25:
            level = random.choice(levels)
        score = 1.3 * math.log(level / (1 - level)) + 2.2 * wander
        matches = random.random() < _logistic(score - overconfident)
        lookup = NOT_FOUND
        if left > 0:
            left, grown = left - 1, grown + 1
            if grown >= 2:
                lookup = Finding(_LOOKED_UP, min(grown, 16), min(left + 1, _LOOKED_UP))
        else:
            grown = 0
            if random.random() < copying / 25:
                left = int(random.expovariate(1 / 20)) + 3
            if random.random() < spurious:
                right = 0
                while random.random() < 0.35 and right < _LOOKED_UP:
                    right += 1
                lookup = Finding(_LOOKED_UP, random.choice((2, 2, 2, 3, 3, 4)), right)
        text.append(Position(min(max(_logistic(score), 0.02), 0.9999), matches, lookup))
    return text


KINDS: dict[str, Callable[[Random, int], Text]] = {
    "easy": lambda random, length: _text(random, length, [0.9]),
    "easy, overconfident": lambda random, length: _text(random, length, [0.95], overconfident=1.0),
    "very easy": lambda random, length: _text(random, length, [0.97]),
    "medium": lambda random, length: _text(random, length, [0.7]),
    "hard": lambda random, length: _text(random, length, [0.35], overconfident=0.7),
    "hopeless": lambda random, length: _text(random, length, [0.9], overconfident=9.0),
    "mixed": lambda random, length: _text(random, length, [0.25, 0.8, 0.93]),
    "copied": lambda random, length: _text(random, length, [0.7], copying=1.0),
    "copied, hard": lambda random, length: _text(random, length, [0.3], overconfident=0.7, copying=0.6, spurious=0.6),
}


def texts(kind: str, seeds: int) -> list[Text]:
    """``seeds`` texts of a kind, or short ones of every kind: the same ones each time."""
    found = []
    for seed in range(seeds):
        random = Random(f"{kind} {seed}")
        if kind == "short":
            found.append(KINDS[random.choice(list(KINDS))](random, random.randint(*SHORT)))
        else:
            found.append(KINDS[kind](random, LONG))
    return found


def decode(state: PolicyState, text: Text, costs: StepCosts, *, has_lookup: bool) -> float:
    """Predicted seconds for the whole of ``text``; plain decoding takes ``len(text) * costs.decode``."""
    position, seconds = 0, 0.0
    while position < len(text):
        found = text[position].lookup if has_lookup else NOT_FOUND
        plan = state.begin(len(text) - position - 1, found.num_found, found.match_length, "ngram")
        assert plan.num_tokens < len(text) - position
        drafted = accepted = 0
        if plan.source == "ngram":
            drafted, accepted = plan.num_tokens, min(plan.num_tokens, found.num_right)
        elif plan.source is Source.MODEL:
            agrees = True
            while drafted < plan.num_tokens:
                place = text[position + drafted]
                agrees = agrees and place.matches
                accepted += agrees
                drafted += 1
                if not state.wants_more(drafted, place.confidence):
                    break
            seconds += drafted * costs.draft + costs.cold
        seconds += costs.verification(drafted)
        state.update(Round(drafted, accepted, plan.source), min(found.num_right, accepted + 1))
        position += accepted + 1
    return seconds
