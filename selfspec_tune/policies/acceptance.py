"""What share of drafted tokens is accepted: estimates that learn within a generation and forget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from selfspec_tune.draft import CONFIDENCE_EDGES, AcceptancePrior

# Constants tuned on simulated texts (tests/policy_simulator.py); the outcome hardly depends on them.
_CONFIDENCE = {"strength": 6.0, "memory": 0.98}
_POSITION = {"strength": 5.0, "memory": 0.93}
_MATCH = {"strength": 2.0, "memory": 0.9}
# A draft of which nothing is known, and how much surer a token is whose predecessor was right.
_UNKNOWN_MEAN, _SURER = 0.7, 0.1
# Lengths of a match, grown by the tokens accepted after it, and the acceptance of the next one at first.
_MATCH_EDGES = (2, 3, 4, 6, 9, 14)
_MATCH_PRIORS = (0.2, 0.4, 0.5, 0.65, 0.8, 0.9, 0.95)


class RunningMean:
    """A mean that starts from a prior worth ``strength`` observations and forgets old ones.

    Each observation first shrinks the weight of those before it, and of the prior, by
    ``memory``, so that about 1 / (1 - memory) of them count.
    """

    __slots__ = ("_memory", "_prior", "_strength", "_sum", "_weight")

    def __init__(self, prior: float, *, strength: float, memory: float) -> None:
        self._prior = prior
        self._strength = strength
        self._memory = memory
        self._sum = 0.0
        self._weight = 0.0

    @property
    def value(self) -> float:
        """The estimate."""
        return self.around(self._prior)

    def around(self, prior: float) -> float:
        """The estimate from another prior of the same strength."""
        return (self._strength * prior + self._sum) / (self._strength + self._weight)

    def add(self, value: float) -> None:
        """Observe ``value``."""
        self._strength *= self._memory
        self._sum = self._memory * self._sum + value
        self._weight = self._memory * self._weight + 1.0


class ModelAcceptance:
    """Of tokens that the model drafted: by confidence once drafted, by position before.

    ``first`` is the acceptance of a round's first token, ``following`` that of a token
    after an accepted one.
    """

    def __init__(self, prior: AcceptancePrior | None) -> None:
        mean = _UNKNOWN_MEAN if prior is None else prior.mean
        self._prior = None if prior is None else prior.by_confidence
        self._bins = [RunningMean(0.0, **_CONFIDENCE) for _ in range(len(CONFIDENCE_EDGES) + 1)]
        self.first = RunningMean(mean, **_POSITION)
        self.following = RunningMean(min(mean + _SURER, (1.0 + mean) / 2), **_POSITION)

    def calibrated(self, confidence: float) -> float:
        """Acceptance of a token drafted at this probability."""
        index = bisect_right(CONFIDENCE_EDGES, confidence)
        return self._bins[index].around(confidence if self._prior is None else self._prior[index])

    def observe(self, confidences: Sequence[float], accepted: int) -> None:
        """Learn from a round; tokens after the first rejected one tell nothing."""
        for position, confidence in enumerate(confidences[: accepted + 1]):
            outcome = float(position < accepted)
            self._bins[bisect_right(CONFIDENCE_EDGES, confidence)].add(outcome)
            (self.following if position else self.first).add(outcome)


class LookupAcceptance:
    """Of tokens looked up, by the length of the match before them."""

    def __init__(self) -> None:
        self._bins = [RunningMean(prior, **_MATCH) for prior in _MATCH_PRIORS]

    def after(self, match_length: int) -> float:
        """Acceptance of a token after so long a match."""
        return self._bins[bisect_right(_MATCH_EDGES, match_length)].value

    def observe(self, match_length: int, agreed: int, seen: int) -> None:
        """Of the first ``seen`` tokens found after a match, ``agreed`` were right before the first wrong one."""
        for position in range(seen):
            index = bisect_right(_MATCH_EDGES, match_length + position)
            self._bins[index].add(float(position < agreed))
