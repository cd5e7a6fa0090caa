"""The exact distribution of what a sampled computation gives: every way that its random choices can fall, in turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor

from selfspec_tune.engine import Sampler

Outcome = TypeVar("Outcome", bound=Hashable)


def distribution(sampler: Sampler, run: Callable[[Sampler], Outcome]) -> dict[Outcome, float]:
    """Probability of each outcome of ``run``, which is repeated for every way that its draws can fall.

    ``run`` must depend on nothing but what it draws from the sampler that it is given, of ``sampler``'s settings.
    """
    every, found = EveryWay(sampler), defaultdict[Outcome, float](float)
    is_left = True
    while is_left:
        outcome = run(every)
        found[outcome] += every.probability
        is_left = every.advance()
    return dict(found)


class EveryWay(Sampler):
    """A sampler that takes one way after another: the same choices as the last time, but for the last that is open."""

    __setattr__ = object.__setattr__  # what it counts with is no setting

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(**sampler.sampling)
        self._open: list[list[tuple[int, float]]] = []  # at each choice: what is still to be taken, the present last
        self._num_taken, self.probability = 0, 1.0

    def draw(self, probabilities: Tensor) -> int:
        return self._take(list(enumerate(probabilities.tolist())))

    def uniform(self) -> Uniform:  # type: ignore[override]
        return Uniform(self)

    def is_below(self, share: float) -> bool:
        """Whether a number from [0, 1) is below ``share``."""
        share = min(float(share), 1.0)
        return bool(self._take([(1, share), (0, 1.0 - share)]))

    def advance(self) -> bool:
        """Begin the next way; False where there is none."""
        while self._open and len(self._open[-1]) == 1:
            self._open.pop()
        if self._open:
            self._open[-1].pop()
        self._num_taken, self.probability = 0, 1.0
        return bool(self._open)

    def _take(self, choices: list[tuple[int, float]]) -> int:
        if self._num_taken == len(self._open):
            self._open.append([choice for choice in choices if choice[1] > 0])
        taken, probability = self._open[self._num_taken][-1]
        self._num_taken += 1
        self.probability *= probability
        return taken


class Uniform:
    """A number from [0, 1), perhaps times a factor, that is not drawn before it is compared."""

    def __init__(self, every: EveryWay, factor: float = 1.0) -> None:
        self._every, self._factor = every, factor

    def __mul__(self, factor: float) -> Uniform:
        return Uniform(self._every, self._factor * factor)

    def __lt__(self, bound: float) -> bool:
        return self._every.is_below(bound / self._factor)
