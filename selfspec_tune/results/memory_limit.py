"""What the memory allowed while something was measured, and how far that moved."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles

from selfspec_tune.results.record import Record


class Spread(Record):
    """The median of several values, and the bounds of their middle half."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """There is at least one."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0])
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median=median(values), low=low, high=high)


class MemoryLimit(Record):
    """What reading memory allows plain decoding at most, were the model held in bfloat16, whatever it is held in.

    ``tokens_per_second`` is over all blocks, as fast as the memory was in each; ``bytes_per_token`` counts weights,
    and keys and values at the mean length; ``bytes_per_second`` is what the memory delivered.
    """

    tokens_per_second: float
    bytes_per_token: float
    bytes_per_second: Spread
