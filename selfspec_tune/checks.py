"""Text and values of others' making: the encoding, JSON by the letter, kinds and ranges, what a terminal may show.

A name in a file may hold escape sequences, which recolour, overwrite or retitle a terminal, or marks that
turn the order of letters around. They are shown as what they are instead, ``\\u001b``, in the same way as JSON writes
them, so JSON stays JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from selfspec_tune.errors import UsageError

_ENOUGH = 4096  # bytes that are looked at; a multiple of every character's width
_FEWEST = 1 / 16  # of a text's characters, those that ASCII has too: spaces, line ends, what JSON is written with
MOST_TOKENS = 2**24  # of a prompt and its answer: beyond every model's context
_MOST = 1e300  # what can still be computed with
_JSON_NAMES = {None: "null", True: "true", False: "false"}
# The control characters of C0 (but tab and newline), DEL and C1, what overrides or isolates a writing direction, and
# bytes of file names that are no text.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def wide_encoding(data: bytes) -> str | None:
    """``UTF-16LE``, ``UTF-16BE``, ``UTF-32LE`` or ``UTF-32BE`` of text that is so encoded; None of any other.

    The NUL bytes tell it: they are the upper bytes of characters, and so stand in every second place.
    """
    beginning = data[:_ENOUGH]
    nuls = [beginning[place::4].count(0) for place in range(4)]
    fours, pairs = len(beginning) // 4, len(beginning) // 2
    if fours and not len(data) % 4:
        if nuls[2] == nuls[3] == fours:
            return "UTF-32LE"
        if nuls[0] == nuls[1] == fours:
            return "UTF-32BE"
    even, odd = nuls[0] + nuls[2], nuls[1] + nuls[3]
    if pairs and not len(data) % 2 and max(even, odd) >= max(_FEWEST * pairs, min(pairs, 2)):
        if odd > 3 * even:
            return "UTF-16LE"
        if even > 3 * odd:
            return "UTF-16BE"
    return None


def how_to_convert(encoding: str) -> str:
    """What makes UTF-8 of a file in ``encoding``."""
    return f"`iconv -f {encoding} -t UTF-8 FILE > NEW-FILE`"


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


def check_number(option: str, value: object, least: float, most: float, expected: str, *, whole: bool = False) -> None:
    """Raise `UsageError` unless ``value`` is a number (a ``whole`` one) from ``least`` to ``most``: NaN never is."""
    if not is_within(value, least, most, whole=whole):
        raise UsageError(f"`{option}` {value!r}: expected {expected}.")


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


def visible(text: str) -> str:
    """``text`` with every character that steers a terminal written out; others, tab and newline too, as they are."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def visible_line(text: str) -> str:
    """The same on a single line: a newline in a name must not begin a line that seems to be the program's own."""
    return visible(text).replace("\n", "\\n")
