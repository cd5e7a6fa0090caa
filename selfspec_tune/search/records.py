"""Drafts and predictions as records of a study's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfspec_tune.bounds import number
from selfspec_tune.draft import Draft
from selfspec_tune.results import DraftSettings, SkipConfig
from selfspec_tune.search.proxy import Prediction
from selfspec_tune.skip_set import SkipSet


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
