"""How far a search has learnt its own text by heart: told by text that it does not search on."""

from __future__ import annotations

from collections.abc import Callable

from selfspec_tune.draft import Draft
from selfspec_tune.search.proxy import Prediction

# Bests in a row that are none on the other text before the search on this one ends.
_PATIENCE = 4


class Overfit:
    """A running comparison of each new best with what the same draft does on held-out text."""

    def __init__(self, held_out: Callable[[Draft, str], Prediction]) -> None:
        self._held_out = held_out
        self._best: Prediction | None = None
        self._since_best = 0
        self._smallest = float("inf")
        self.gap = 0.0

    @property
    def best(self) -> Prediction | None:
        """The best of the bests by the held-out text."""
        return self._best

    @property
    def is_growing(self) -> bool:
        """Whether several bests in a row promised more on the search's own text alone."""
        return self._since_best >= _PATIENCE

    def check(self, best: Prediction) -> None:
        """Take a new best of the search; ``gap`` is how much more it promises there than on the held-out text."""
        other = self._held_out(best.draft, best.origin)
        self.gap = best.speedup / other.speedup - 1
        if self._best is None or other.speedup > self._best.speedup:
            self._best, self._since_best, self._smallest = other, 0, min(self._smallest, self.gap)
        elif self.gap > self._smallest:
            self._since_best += 1
