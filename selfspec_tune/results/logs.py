"""Logs of measurements, which go on where they ended: their heading, their owner, and what must not have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from selfspec_tune.checks import shown
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.files import short_hash, storage_error

WAYS_OUT = "Give the same options to resume it, `fresh` to measure again (the old runs are kept), or another `out`."


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


@contextmanager
def owned(path: Path, owner: str = "bench") -> Iterator[None]:
    """Within it no other ``owner`` writes to the log. Raises `UsageError` where one does already, `StorageError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path.with_name(f".{path.name}.lock")))
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{path} is in use by another {owner}. Wait for it, or give another `out`.") from None
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def heading_of(rows: Sequence[Any], path: Path, schema: str, version: int) -> dict[str, Any] | None:
    """The heading of a log's rows, None of an empty one. Raises `FileFormatError`."""
    if not rows:
        return None
    heading = rows[0]
    if not isinstance(heading, dict) or heading.get("schema") != schema:
        raise FileFormatError(f"{path} is no log of a bench (expected schema {schema} in its first line). {WAYS_OUT}")
    if type(heading.get("version")) is not int or heading["version"] != version:
        raise FileFormatError(
            f"{path} is version {shown(heading.get('version'))} of {schema}; this program reads {version}. "
            "Update selfspec-tune, or give another `out`."
        )
    if not isinstance(heading.get("measurement"), dict):
        raise FileFormatError(f"{path} does not say in its first line what it measured. {WAYS_OUT}")
    return heading
