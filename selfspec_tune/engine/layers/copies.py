"""The low-precision copies that drafts share: made when first needed, dropped when memory runs short."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfspec_tune.draft import Precision
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.lowbit import LowBit, LowBitSettings, copy_bytes, make_copy
from selfspec_tune.errors import UsageError

Key = tuple[int, Precision]
"""A sub-layer's index in the order of `SkipSet.to_flags` (2 L is the output head) and its precision."""


class DraftCopies:
    """Keeps copies of the linear layers that ``layers_of`` gives for an index.

    ``make`` makes a copy and ``size`` gives its bytes beforehand: torch's by default.
    ``limit``: most bytes that all copies together may hold; None: no limit.
    """

    def __init__(
        self,
        layers_of: Callable[[int], Sequence[Dense]],
        make: Callable[[Dense, Precision, LowBitSettings], LowBit] = make_copy,
        size: Callable[[Dense, Precision, LowBitSettings], int] = copy_bytes,
    ) -> None:
        self._layers_of = layers_of
        self._make, self._size = make, size
        self._copies: dict[Key, tuple[LowBit, ...]] = {}
        self.limit: int | None = None
        self.settings = LowBitSettings()

    @property
    def num_bytes(self) -> int:
        """Bytes of all copies that are held now."""
        return sum(copy.num_bytes for copies in self._copies.values() for copy in copies)

    def bytes_of(self, key: Key) -> int:
        """Bytes of one copy, whether it is held or not."""
        index, precision = key
        layers = self._layers_of(index)
        return sum(self._size(dense, precision, self.settings) for dense in layers)

    def require(self, keys: Sequence[Key]) -> None:
        """Hold all of ``keys``, for which `make_room` has made room.

        Raises `UnsupportedPrecisionError` where there is no kernel for one of them.
        """
        for index, precision in keys:
            held = self._copies.pop((index, precision), None)
            if held is None:
                held = tuple(self._make(dense, precision, self.settings) for dense in self._layers_of(index))
            self._copies[index, precision] = held  # moved to the end: the most recently needed

    def get(self, key: Key) -> tuple[LowBit, ...]:
        """A copy that `require` was asked for."""
        return self._copies[key]

    def make_room(self, keys: Sequence[Key]) -> set[Key]:
        """Drop copies other than ``keys``, the least recently needed first, until these fit; returns the dropped.

        Raises `UsageError` where ``keys`` alone do not fit into ``limit``; nothing is dropped then.
        """
        if self.limit is None:
            return set()
        needed = sum(self.bytes_of(key) for key in keys)
        if needed > self.limit:
            raise UsageError(
                f"This draft needs {_mib(needed)} of low-precision copies; the extra memory allowed is "
                f"{_mib(self.limit)}. Allow more (`extra_memory`), or draft fewer sub-layers at low precision."
            )
        missing = sum(self.bytes_of(key) for key in keys if key not in self._copies)
        dropped: set[Key] = set()
        for key in [held for held in self._copies if held not in set(keys)]:
            if self.num_bytes + missing <= self.limit:
                break
            del self._copies[key]
            dropped.add(key)
        return dropped


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
