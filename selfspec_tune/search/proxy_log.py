"""Every prediction as it came, so that a killed search goes on where it was."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median

from selfspec_tune.bounds import number
from selfspec_tune.files import append_jsonl, read_jsonl, taken_apart
from selfspec_tune.search.proxy import Prediction
from selfspec_tune.search.records import prediction_record, read_prediction


class ProxyLog:
    """Predictions by the text that they were made on, in ``file``; None: kept nowhere."""

    def __init__(self, file: Path | None, num_layers: int) -> None:
        self._file = file
        self._predictions: defaultdict[str, list[Prediction]] = defaultdict(list)
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        if file is None:
            return
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
        if self._file is not None:
            append_jsonl(self._file, {"text": text, **prediction_record(prediction), "seconds": round(seconds, 3)})
