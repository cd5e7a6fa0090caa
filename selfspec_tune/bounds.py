"""Checks of single values that come out of files: their kind and their range, by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from selfspec_tune.errors import UsageError

MOST_TOKENS = 2**24  # of a prompt and its answer: beyond every model's context
_MOST = 1e300  # what can still be computed with


_JSON_NAMES = {None: "null", True: "true", False: "false"}


def kind_of_value(value: Any) -> str:
    """What it is in JSON's words: null, true, false, a number, a text, a list or an object; else its type's name."""
    if value is None or isinstance(value, bool):
        return _JSON_NAMES[value]
    kinds = {"a number": int | float, "a text": str, "a list": list | tuple, "an object": Mapping}
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), type(value).__name__)


def shown(value: Any) -> str:
    """A value in an error, cut where it is long."""
    text = _JSON_NAMES[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"


def is_within(value: Any, least: float, most: float, *, whole: bool = False) -> bool:
    """Whether it is a number, or a ``whole`` one, from ``least`` to ``most``: true is none, and NaN is nowhere."""
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool) and least <= value <= most


def whole(name: str, value: Any, least: int, most: int) -> int:
    """``value``, an int from ``least`` to ``most``. Raises `UsageError` for anything else, true and 1.0 too."""
    if not is_within(value, least, most, whole=True):
        raise UsageError(f"{name} is {shown(value)}; expected a whole number from {least} to {most}.")
    found: int = value
    return found


def number(name: str, value: Any, least: float = -_MOST, most: float = _MOST) -> float:
    """``value``, a finite number from ``least`` to ``most``. Raises `UsageError` for anything else, true too."""
    if not is_within(value, least, most):
        bounds = f" from {least:g}" * (least > -_MOST) + f" to {most:g}" * (most < _MOST)
        raise UsageError(f"{name} is {shown(value)}; expected a number{bounds}.")
    found: float = value
    return found


def numbers(name: str, values: Any, least: float = 0.0, most: float = _MOST) -> tuple[float, ...]:
    """``values``, a list of numbers from ``least`` to ``most``. Raises `UsageError` for anything else."""
    if not isinstance(values, list | tuple):
        raise UsageError(f"{name} is {shown(values)}; expected a list of numbers.")
    return tuple(float(number(f"{name}.{place}", value, least, most)) for place, value in enumerate(values))


def wholes(name: str, values: Any, most: int) -> tuple[int, ...]:
    """``values``, a list of whole numbers from 0 to ``most``. Raises `UsageError` for anything else."""
    if not isinstance(values, list | tuple):
        raise UsageError(f"{name} is {shown(values)}; expected a list of whole numbers.")
    return tuple(whole(f"{name}.{place}", value, 0, most) for place, value in enumerate(values))


def only_known(name: str, value: Any, known: Collection[str]) -> Mapping[str, Any]:
    """``value``, an object with keys out of ``known`` alone. Raises `UsageError`: another key may be a misspelt one."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} is {shown(value)}; expected an object.")
    if others := [key for key in value if key not in known]:
        raise UsageError(f"{name} has the key {shown(others[0])}; known here are {', '.join(known)}.")
    return value
