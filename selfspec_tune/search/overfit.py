"""How far a search has learnt its own text by heart: told by text that it does not search on."""

from __future__ import annotations

from collections.abc import Callable

from selfspec_tune.draft import Draft
from selfspec_tune.search.proxy import Prediction

# Bests in a row that are none on the other text before the search on this one ends.
_PATIENCE = 4


class Overfit:
    """A running comparison of each new best with what the same draft does on held-out text; ``best``: most of that."""

    def __init__(self, held_out: Callable[[Draft], float | None]) -> None:
        """``held_out``: a draft's predicted speedup on the other text; None where there is no such text."""
        self._held_out = held_out
        self.best: float | None = None
        self._since_best = 0
        self._smallest = float("inf")
        self.gap = 0.0

    @property
    def is_growing(self) -> bool:
        """Whether several bests in a row promised more on the search's own text alone."""
        return self._since_best >= _PATIENCE

    def check(self, best: Prediction) -> None:
        """Take a new best of the search; ``gap`` is how much more it promises there than on the held-out text."""
        other = self._held_out(best.draft)
        if other is None:
            return
        self.gap = best.speedup / other - 1
        if self.best is None or other > self.best:
            self.best, self._since_best, self._smallest = other, 0, min(self._smallest, self.gap)
        elif self.gap > self._smallest:
            self._since_best += 1
