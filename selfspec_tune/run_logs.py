"""What the logs of measurements share: what is measured must stay the same, and no answer is lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfspec_tune.files import short_hash, storage_error


def first_difference(recorded: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> str | None:
    """``dtype was float32, is bfloat16``: the first entry in which two records differ, None where they agree."""
    for name in {**asked, **recorded}:
        old, new = recorded.get(name), asked.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found = first_difference(old, new, f"{prefix}{name} ")
            if found:
                return found
        elif old != new:
            return f"{prefix}{name} was {_shown(old)}, is {_shown(new)}"
    return None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        text = ", ".join(map(str, value))
        return text if len(value) <= 8 and len(text) <= 60 else f"{len(value)} ({short_hash(text)[:8]})"
    return "none" if value is None else str(value)


def put_aside(path: Path) -> Path:
    """Rename the log to the first free ``NAME.1``, ``NAME.2``, …; nothing measured is ever lost."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    try:
        return path.rename(aside)
    except OSError as error:
        raise storage_error(path, error) from error
