"""Figures as short strings: one way to write each, wherever it appears."""

from __future__ import annotations

import math
from typing import Protocol

from rich import box
from rich.table import Table

from selfspec_tune.reporting import Candidate
from selfspec_tune.skip_set import SkipSet

UNKNOWN = "–"
MAP_LEGEND = "█ kept   · skipped"
_LABEL_WIDTH = 5


class Bounds(Protocol):
    """An estimate with its confidence bounds, whichever module's class it is."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def times(value: float) -> str:
    """A ratio: ``1.21×``."""
    return f"{value:.2f}×"


def bounds(interval: Bounds, separator: str = "–") -> str:
    """The bounds of an interval, ``1.15–1.27``; empty where they are the value itself."""
    if interval.low == interval.high:
        return ""
    if interval.low <= 0 and math.isinf(interval.high):
        return "unbounded"
    return f"{interval.low:.2f}{separator}{interval.high:.2f}"


def speedup(interval: Bounds | None, gap: str = " ") -> str:
    """A speedup with its bounds, ``1.21× [1.15–1.27]``; ``gap`` stands between the two."""
    if interval is None:
        return UNKNOWN
    span = bounds(interval)
    return f"{times(interval.value)}{gap}[{span}]" if span else times(interval.value)


def figure(value: float | None, digits: int) -> str:
    """A number with so many decimals, or a dash."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def spelled_out(text: str, most: int) -> str:
    """``text`` with line ends, control characters and the like written as escapes: ``\\n``, ``\\x1b``, ``\\u202e``.

    Of one with more than ``most`` characters, a half of them from its beginning and a half from its end.
    """
    if len(text) > most:
        half = most // 2
        left_out = len(text) - 2 * half
        return f"{spelled_out(text[:half], half)} […{left_out} characters…] {spelled_out(text[-half:], half)}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def percent(share: float | None) -> str:
    """A share from 0 to 1 in percent, or a dash."""
    return UNKNOWN if share is None else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """``0:45``, ``12:05`` or ``1:02:05``; never negative."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size(num_bytes: float) -> str:
    """``512 B``, ``1.4 GiB``: binary units."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def origin_and_number(candidate: Candidate) -> str:
    """How a candidate is referred to: ``#14 tpe``."""
    return f"#{candidate.number} {candidate.origin}".rstrip()


def candidate_speedup(candidate: Candidate) -> str:
    """Its speedup, and whether the pruner ended its measurement."""
    text = "not measured" if candidate.speedup is None else speedup(candidate.speedup)
    return f"{text} stopped early" if candidate.stopped_early else text


def layer_map_rows(skip_set: SkipSet, width: int) -> list[str]:
    """The two rows of the layer map, broken into more pairs of rows where ``width`` is less.

    Later pairs start with the number of their first layer.
    """
    attention, mlp = skip_set.layer_map().splitlines()
    chunk = max(8, width - _LABEL_WIDTH)
    rows: list[str] = []
    for start in range(0, skip_set.num_layers, chunk):
        part = slice(_LABEL_WIDTH + start, _LABEL_WIDTH + start + chunk)
        label = str(start) if start else attention[:_LABEL_WIDTH].strip()
        rows += [f"{label:<4} {attention[part]}", f"{mlp[:_LABEL_WIDTH]}{mlp[part]}"]
    return rows


def table(*headers: str) -> Table:
    """An empty table in the one style that all of them share."""
    return Table(*headers, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
