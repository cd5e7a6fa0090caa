"""JSON by the letter of its format: what Python's reader lets through beyond it would be a wrong figure later."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from selfspec_tune.bounds import shown


def parse_json(text: str) -> Any:
    """The value in ``text``. Raises ValueError where it is no JSON, or holds NaN, an infinity or a key twice."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=finite, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def finite(text: str) -> float:
    """The number in ``text``. Raises ValueError for NaN, and for one so large that Python takes it for infinite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is no number that can be computed with")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(next(name for name in found if names.count(name) > 1))} is there twice")
    return found
