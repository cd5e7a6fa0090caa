"""Figures of results, and whether two of them agree: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from selfspec_tune.intervals import Interval

_WIDEST = 2.0  # times the published interval: a wider one agrees with too much


class Verdict(StrEnum):
    """Whether a published figure holds here."""

    HOLDS = "holds"
    DIFFERS = "differs"
    UNTOLD = "cannot be told"
    UNMEASURED = "was not measured"


def judge(published: Interval, here: Interval | None) -> Verdict:
    """What the two intervals allow to say.

    The figure differs where they have nothing in common. It holds where each value lies in the other's interval and
    the one here is at most twice as wide as the published one. Anything else cannot be told.
    """
    if here is None:
        return Verdict.UNMEASURED
    if here.high < published.low or here.low > published.high:
        return Verdict.DIFFERS
    is_mutual = published.low <= here.value <= published.high and here.low <= published.value <= here.high
    width, allowed = here.high - here.low, _WIDEST * (published.high - published.low)
    is_narrow = math.isfinite(width) and width <= allowed
    return Verdict.HOLDS if is_mutual and is_narrow else Verdict.UNTOLD


def figure(document: Any, way: Sequence[str | int | Mapping[str, Any]], tolerance: float = 0.0) -> Interval:
    """The figure at the end of ``way``; one without an interval gets one of its ``tolerance`` to both sides.

    A table on the way chooses the one entry of a list that has all of its own entries. An interval is an object with
    ``low``, ``high`` and either ``value`` or ``median``; a missing bound is one that is not known.

    Raises:
        LookupError: it is not there, or is no figure; the message says where the way ended.
    """
    value = document
    for step in way:
        value = _next(value, step)
    if isinstance(value, int | float) and not isinstance(value, bool):
        off = abs(value) * tolerance
        return Interval(float(value), value - off, value + off)
    if isinstance(value, dict) and {"low", "high"} <= value.keys():
        middle = value.get("value", value.get("median"))
        if isinstance(middle, int | float):
            low, high = value["low"], value["high"]
            return Interval(float(middle), -math.inf if low is None else low, math.inf if high is None else high)
    found = "nothing" if value is None else f"a {type(value).__name__}"
    raise LookupError(f"{written(way)} is {found}, no figure")


def written(way: Sequence[str | int | Mapping[str, Any]]) -> str:
    """A way in a line: ``methods[name=self-speculative].decode_speedup``."""
    parts = [
        f".{step}" if isinstance(step, str) else f"[{step}]" if isinstance(step, int) else f"[{_chosen_by(step)}]"
        for step in way
    ]
    return "".join(parts).removeprefix(".")


def _chosen_by(step: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in step.items())


def _next(value: Any, step: str | int | Mapping[str, Any]) -> Any:
    if isinstance(step, str):
        if not isinstance(value, dict) or step not in value:
            raise LookupError(f"there is no {step!r}")
        return value[step]
    if not isinstance(value, list):
        raise LookupError(f"there is no list to take {written([step])} from")
    if isinstance(step, int):
        if not -len(value) <= step < len(value):
            raise LookupError(f"the list has {len(value)} entries, none at {step}")
        return value[step]
    found = [entry for entry in value if isinstance(entry, dict) and _has(entry, step)]
    if len(found) != 1:
        raise LookupError(f"{len(found) or 'no'} entries have {_chosen_by(step)}; expected one")
    return found[0]


def _has(entry: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return all(name in entry and entry[name] == value for name, value in asked.items())
