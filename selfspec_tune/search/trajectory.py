"""The best draft that a search would have given at any time, as it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfspec_tune.bounds import number
from selfspec_tune.draft import Draft
from selfspec_tune.files import append_jsonl, read_jsonl, taken_apart
from selfspec_tune.search.records import draft_record, read_draft


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The best ``draft`` after ``seconds`` of searching, by the search's own ``score``; ``stage``: who scored it."""

    seconds: float
    draft: Draft
    score: float
    stage: str


class Trajectory:
    """Incumbents in the order that they came, kept in a file of the study."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def note(self, incumbent: Incumbent) -> None:
        """Keep a new best."""
        about = {"seconds": round(incumbent.seconds, 2), "stage": incumbent.stage, "score": incumbent.score}
        append_jsonl(self._file, {**about, **draft_record(incumbent.draft)})

    def read(self, num_layers: int) -> list[Incumbent]:
        """Everything noted, by earlier runs too. Raises `FileFormatError`."""
        records: list[dict[str, Any]] = read_jsonl(self._file)
        with taken_apart(self._file):
            return [_incumbent(record, num_layers) for record in records]


def _incumbent(record: dict[str, Any], num_layers: int) -> Incumbent:
    seconds, score = (float(number(name, record[name])) for name in ("seconds", "score"))
    return Incumbent(seconds, read_draft(record, num_layers), score, str(record["stage"]))


def incumbent_at(incumbents: Sequence[Incumbent], seconds: float) -> Incumbent | None:
    """What a search would have given after ``seconds``; None: nothing yet."""
    earlier = [incumbent for incumbent in incumbents if incumbent.seconds <= seconds]
    return earlier[-1] if earlier else None
