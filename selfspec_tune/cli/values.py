"""From what was typed to plain values: lists of numbers."""

from __future__ import annotations

import re

from selfspec_tune.errors import UsageError

_NUMBER = re.compile("[0-9]{1,9}")  # str.isdecimal takes the digits of every script


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
