"""What a search settles after its trials, as a file of the study: a resumed search tests the same winner."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from selfspec_tune.bounds import number, whole
from selfspec_tune.draft import Draft
from selfspec_tune.errors import UsageError
from selfspec_tune.files import taken_apart, write_json_atomic
from selfspec_tune.results.record import read_versioned
from selfspec_tune.search.conclusion import bounded
from selfspec_tune.search.records import draft_record, read_draft
from selfspec_tune.statistics import Interval

_SCHEMA, _VERSION = "selfspec-tune/choice", 1
_MOST_PROMPTS = 10_000_000


@dataclass(frozen=True, slots=True)
class Choice:
    """Which drafts compete on how many selection prompts.

    ``winner``: the fastest of them and ``promised`` its speedup there; None before they competed, and ``promised`` also
    where there was a single one.
    """

    finalists: tuple[Draft, ...]
    num_selection: int
    winner: Draft | None = None
    promised: Interval | None = None


def write_choice(file: Path, budget: dict[str, Any], choice: Choice) -> None:
    """Keep a choice that was made under ``budget``."""
    write_json_atomic(
        file,
        {
            "schema": _SCHEMA,
            "version": _VERSION,
            "budget": budget,
            "finalists": [draft_record(draft) for draft in choice.finalists],
            "num_selection": choice.num_selection,
            "winner": None if choice.winner is None else draft_record(choice.winner),
            "promised": None if choice.promised is None else bounded(choice.promised),
        },
    )


def read_choice(file: Path, budget: dict[str, Any], num_layers: int) -> Choice | None:
    """The inverse of `write_choice`; None where none was made under ``budget``. Raises `FileFormatError`."""
    if not file.exists():
        return None
    value = read_versioned(file, _SCHEMA, _VERSION)
    with taken_apart(file):
        if value["budget"] != budget:
            return None
        winner, promised = value["winner"], value["promised"]
        choice = Choice(
            tuple(read_draft(record, num_layers) for record in value["finalists"]),
            whole("num_selection", value["num_selection"], 0, _MOST_PROMPTS),
            None if winner is None else read_draft(winner, num_layers),
            None if promised is None else _interval(promised),
        )
        if not choice.finalists:
            raise UsageError("finalists is empty; expected one draft or more.")
        return choice


def _interval(value: dict[str, float | None]) -> Interval:
    ends = {name: inf if end is None else float(number(name, end, 0.0)) for name, end in value.items()}
    return Interval(**ends)
