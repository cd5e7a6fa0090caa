"""The ranking as a file of the study, so that a resumed search need not repeat it."""

from __future__ import annotations

from pathlib import Path

from selfspec_tune.draft import Draft
from selfspec_tune.files import read_json, write_json_atomic
from selfspec_tune.search.proxy import Prediction
from selfspec_tune.search.ranking import Ranking
from selfspec_tune.search.replay import CostModel
from selfspec_tune.skip_set import SkipSet


def write_ranking(file: Path, ranking: Ranking) -> None:
    """Keep a ranking, so that a resumed search need not repeat it."""
    costs = ranking.costs
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
            "version": 1,
            "vocabulary": ranking.vocabulary,
            "importance": ranking.importance,
            "cost_model_seconds": {
                "verify": list(costs.verify),
                "draft_base": costs.draft_base,
                "attention": costs.attention,
                "mlp": costs.mlp,
            },
            "candidates": candidates,
        },
    )


def read_ranking(file: Path, num_layers: int) -> Ranking:
    """The inverse of `write_ranking`."""
    value = read_json(file)
    costs = value["cost_model_seconds"]
    model = CostModel(tuple(costs["verify"]), costs["draft_base"], costs["attention"], costs["mlp"], num_layers)
    candidates = []
    for entry in value["candidates"]:
        skip_set = SkipSet(num_layers, tuple(entry["skip"]["attention"]), tuple(entry["skip"]["mlp"]))
        draft = Draft.from_dict(skip_set, entry["draft"])
        candidates.append(Prediction(draft, entry["predicted_decode_speedup"], entry["origin"]))
    return Ranking(model, value["importance"], value["vocabulary"], candidates)
