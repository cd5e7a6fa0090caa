"""The account that keeps a generation from losing against plain decoding."""

from __future__ import annotations


class Ledger:
    """Predicted time spent, against what plain decoding would have taken for as many tokens.

    In plain steps. ``max_loss`` bounds what may be lost in the long run as a share of the
    time; ``credit`` is what may be lost beyond it in all, so that a generation can find
    out what its drafts are worth.
    """

    def __init__(self, max_loss: float, credit: float) -> None:
        self._scale = 1.0 / (1.0 - max_loss)
        self._credit = credit
        self.spent = 0.0
        self.tokens = 0

    @property
    def stake(self) -> float:
        """What the next round may cost beyond a plain step if none of its drafts is accepted."""
        return (self.tokens + 1) * self._scale + self._credit - self.spent - 1.0

    def book(self, cost: float, tokens: int) -> None:
        """A round that took ``cost`` and gave ``tokens``."""
        self.spent += cost
        self.tokens += tokens
