"""From what was typed to plain values: durations, slugs, and which options were given."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from selfspec_tune.draft import DraftPrecision
from selfspec_tune.errors import BudgetError, UsageError
from selfspec_tune.requests import ExtraMemory

_MOST_LAYERS = 1000  # more than any model has
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile("[0-9]{1,9}")  # str.isdecimal takes the digits of every script


def given(**options: Any) -> dict[str, Any]:
    """Those options that were given, as plain values; a flag counts only when set."""
    return {
        name: value.value if isinstance(value, StrEnum) else value
        for name, value in options.items()
        if value is not None and value is not False
    }


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``45m``, ``1.5h`` or ``1h30m``. Raises `BudgetError`."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise BudgetError(f"--timeout {text!r} is no duration; expected a form like 90, 90s, 45m, 2h or 1h30m.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def parse_vocabulary(text: str | None) -> str | None:
    """``auto``, ``full`` or a number of token ids, checked. Raises `UsageError`."""
    if text is None or text in ("auto", "full") or (_NUMBER.fullmatch(text) and int(text) > 0):
        return text
    raise UsageError(f"--draft-vocab {text!r}: expected auto, full, or a positive number of token ids.")


def parse_contexts(text: str | None) -> tuple[int, ...]:
    """Lengths as in ``128,1024``, in that order, none twice. Raises `UsageError`."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(map(_NUMBER.fullmatch, parts)):
        raise UsageError(f"--contexts {text!r}: expected numbers of tokens, separated by commas, such as 128,1024.")
    return tuple(dict.fromkeys(map(int, parts)))


def parse_sweep_values(text: str | None) -> tuple[float, ...] | None:
    """The numbers of ``256,512,1024``, None where none are given. Raises `UsageError`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--sweep-values {text!r}: expected numbers and commas, such as 256,512,1024.") from None


def parse_precision(text: str | None, *, auto: bool = False) -> str | None:
    """The text form of a `DraftPrecision`, checked as far as can be without a model; ``auto`` where it is allowed.

    Raises `UsageError`.
    """
    if text is not None and not (auto and text == "auto"):
        DraftPrecision.parse(text, _MOST_LAYERS)
    return text


def parse_extra_memory(text: str | None) -> ExtraMemory | None:
    """``30%``, ``2GiB`` or ``0``. Raises `UsageError`."""
    return None if text is None else ExtraMemory.parse(text)


def slug(text: str) -> str:
    """A name fit for a folder: the last part of a path or hub id, in lower case with dashes."""
    name = text.rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"\.(gguf|jsonl|json|csv|txt|parquet)$", "", name)
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "unnamed"
