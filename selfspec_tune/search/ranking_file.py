"""The ranking as a file of the study, so that a resumed search need not repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import Draft, Precision
from selfspec_tune.files import read_json, write_json_atomic
from selfspec_tune.search.proxy import Prediction
from selfspec_tune.search.ranking import Ranking
from selfspec_tune.skip_set import SkipSet


def write_ranking(file: Path, ranking: Ranking) -> None:
    """Keep a ranking, so that a resumed search need not repeat it."""
    candidates = [
        {
            "skip": prediction.draft.skip_set.to_dict(),
            "draft": prediction.draft.to_dict(),
            "predicted_decode_speedup": prediction.speedup,
            "origin": prediction.origin,
        }
        for prediction in ranking.candidates
    ]
    write_json_atomic(
        file,
        {
            "schema": "selfspec-tune/ranking",
            "version": 2,
            "vocabulary": ranking.vocabulary,
            "importance": ranking.importance,
            "cost_model_seconds": ranking.costs.to_dict(),
            "candidates": candidates,
        },
    )


def read_ranking(file: Path, num_layers: int) -> Ranking:
    """The inverse of `write_ranking`."""
    value = read_json(file)
    candidates = []
    for entry in value["candidates"]:
        skip_set = SkipSet(num_layers, tuple(entry["skip"]["attention"]), tuple(entry["skip"]["mlp"]))
        draft = Draft.from_dict(skip_set, entry["draft"])
        candidates.append(Prediction(draft, entry["predicted_decode_speedup"], entry["origin"]))
    return Ranking(_costs(value, num_layers), value["importance"], value["vocabulary"], candidates)


def _costs(value: dict[str, Any], num_layers: int) -> CostModel:
    """The cost model; version 1 kept one cost of each kind, at one precision and one context."""
    costs = value["cost_model_seconds"]
    if value["version"] > 1:
        return CostModel.from_dict(costs)
    heads, attention, mlp = ({Precision.SAME: float(costs[name])} for name in ("draft_base", "attention", "mlp"))
    return CostModel(tuple(costs["verify"]), heads, attention, mlp, num_layers)
