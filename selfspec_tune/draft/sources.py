"""The sources of drafts that are known: what is added here is in files, searches, benches and reports.

The option that asks for a source is a field of `selfspec_tune.requests.DraftOptions` of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.source import DraftSource
from selfspec_tune.errors import UsageError

SOURCES: dict[str, type[DraftSource]] = {NgramLookup.name: NgramLookup}
"""By name, in the order in which they are asked."""


def wanted(choices: Mapping[str, Any], given: Sequence[DraftSource] = ()) -> tuple[DraftSource, ...]:
    """``given``, with those that ``choices`` asks for by name and without those that it turns away.

    What is asked for and not given has its default settings. Names of other things are ignored.
    """
    found = {source.name: source for source in given}
    for name, kind in SOURCES.items():
        if not choices.get(name, name in found):
            found.pop(name, None)
        elif name not in found:
            found[name] = kind()
    return in_order(found.values())


def in_order(sources: Iterable[DraftSource]) -> tuple[DraftSource, ...]:
    """``sources`` as they are asked. Raises `UsageError` for one that is there twice, or not known."""
    by_name: dict[str, DraftSource] = {}
    for source in sources:
        if source.name in by_name or source.name not in SOURCES:
            problem = "is there twice" if source.name in by_name else "is not known"
            raise UsageError(f"The draft source {source.name!r} {problem}; expected each of {', '.join(SOURCES)} once.")
        by_name[source.name] = source
    return tuple(by_name[name] for name in SOURCES if name in by_name)


def to_json(sources: Sequence[DraftSource]) -> dict[str, Any]:
    """Every known source's settings by its name; None for those that are not among ``sources``."""
    return dict.fromkeys(SOURCES) | {source.name: source.to_dict() for source in sources}


def from_json(draft: Mapping[str, Any]) -> tuple[DraftSource, ...]:
    """The inverse of `to_json`, out of a ``draft`` object with other fields besides. Raises `UsageError`."""
    return tuple(kind.from_dict(draft[name]) for name, kind in SOURCES.items() if draft.get(name) is not None)


def labels(joined_by: str) -> str:
    """The labels of all that are known."""
    return joined_by.join(kind.label for kind in SOURCES.values())
