"""The ranking as a file of the study, so that a resumed search need not repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import Precision
from selfspec_tune.files import write_json_atomic
from selfspec_tune.results.record import read_versioned
from selfspec_tune.search.importance import Importance
from selfspec_tune.search.ranking import Ranking
from selfspec_tune.search.records import prediction_record, read_prediction

_SCHEMA, _VERSION = "selfspec-tune/ranking", 3


def write_ranking(file: Path, ranking: Ranking) -> None:
    """Keep a ranking, so that a resumed search need not repeat it."""
    write_json_atomic(
        file,
        {
            "schema": _SCHEMA,
            "version": _VERSION,
            "vocabulary": ranking.vocabulary,
            "importance": ranking.importance.to_dict(),
            "cost_model_seconds": ranking.costs.to_dict(),
            "candidates": [prediction_record(prediction) for prediction in ranking.candidates],
        },
    )


def read_ranking(file: Path, num_layers: int) -> Ranking:
    """The inverse of `write_ranking`; older versions, too. Raises `FileFormatError`."""
    value = read_versioned(file, _SCHEMA, _VERSION)
    candidates = [read_prediction(record, num_layers) for record in value["candidates"]]
    return Ranking(_costs(value, num_layers), _importance(value), value["vocabulary"], candidates)


def _importance(value: dict[str, Any]) -> Importance:
    """Versions 1 and 2 kept the rises alone."""
    kept = value["importance"]
    if value["version"] > 2:
        return Importance.from_dict(kept)
    return Importance(tuple(kept), (0.0,) * len(kept))


def _costs(value: dict[str, Any], num_layers: int) -> CostModel:
    """The cost model; version 1 kept one cost of each kind, at one precision and one context."""
    costs = value["cost_model_seconds"]
    if value["version"] > 1:
        return CostModel.from_dict(costs)
    heads, attention, mlp = ({Precision.SAME: float(costs[name])} for name in ("draft_base", "attention", "mlp"))
    return CostModel(tuple(costs["verify"]), heads, attention, mlp, num_layers)
