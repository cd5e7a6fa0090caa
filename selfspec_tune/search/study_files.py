"""What a search keeps as it comes: drafts, predictions, and the best draft at any time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from selfspec_tune.checks import number
from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.files import append_jsonl, read_jsonl, taken_apart
from selfspec_tune.results import DraftSettings, SkipConfig
from selfspec_tune.search.stages.proxy import Prediction


def draft_record(draft: Draft) -> dict[str, Any]:
    """``skip`` and ``draft``, as in skip.json."""
    return {"skip": draft.skip_set.to_dict(), "draft": draft.to_dict()}


def read_draft(record: dict[str, Any], num_layers: int) -> Draft:
    """The inverse of `draft_record`. Raises KeyError, TypeError or `UsageError` for another value."""
    skip, draft = record["skip"], DraftSettings.model_validate(record["draft"], strict=True)
    skip_set = SkipSet(num_layers, tuple(skip["attention"]), tuple(skip["mlp"]))
    return Draft.from_dict(skip_set, draft.model_dump())


def read_winner(skip_file: Path) -> Draft:
    """The draft of a study's skip.json."""
    config = SkipConfig.load(skip_file)
    return Draft.from_dict(config.skip_set(), config.draft.model_dump())


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """A draft with what was predicted for it."""
    record = draft_record(prediction.draft)
    return {**record, "predicted_decode_speedup": prediction.speedup, "origin": prediction.origin}


def read_prediction(record: dict[str, Any], num_layers: int) -> Prediction:
    """The inverse of `prediction_record`. Raises what `read_draft` does."""
    speedup = float(number("predicted_decode_speedup", record["predicted_decode_speedup"]))
    return Prediction(read_draft(record, num_layers), speedup, str(record["origin"]))


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


class ProxyLog:
    """Predictions by the text that they were made on, in ``file``."""

    def __init__(self, file: Path, num_layers: int) -> None:
        self._file = file
        self._predictions: defaultdict[str, list[Prediction]] = defaultdict(list)
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        records = read_jsonl(file)
        with taken_apart(file):
            for record in records:
                self._predictions[record["text"]].append(read_prediction(record, num_layers))
                self._seconds[record["text"]].append(number("seconds", record["seconds"], 0.0))

    def predictions(self, text: str) -> list[Prediction]:
        """What earlier runs predicted on ``text``."""
        return self._predictions[text]

    def seconds(self, text: str) -> float:
        """Time spent on ``text`` so far, by earlier runs too."""
        return sum(self._seconds[text])

    def seconds_each(self, text: str) -> float:
        """The median time of a prediction on ``text``; 0 before the first."""
        return median(self._seconds[text]) if self._seconds[text] else 0.0

    def add(self, text: str, prediction: Prediction, seconds: float) -> None:
        """Keep a prediction that took ``seconds``."""
        self._seconds[text].append(seconds)
        append_jsonl(self._file, {"text": text, **prediction_record(prediction), "seconds": round(seconds, 3)})
