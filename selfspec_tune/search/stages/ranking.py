"""What the trials start from: step costs, importance, and the drafts that are predicted to be best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfspec_tune.checks import whole
from selfspec_tune.draft import MOST_TOKEN_IDS, AcceptancePrior, Draft, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.files import taken_apart, write_json_atomic
from selfspec_tune.requests import Objective
from selfspec_tune.results.record import read_versioned
from selfspec_tune.search.stages.importance import Importance
from selfspec_tune.search.stages.proxy import Prediction
from selfspec_tune.search.stages.replay import with_prior
from selfspec_tune.search.starts import START
from selfspec_tune.search.study_files import prediction_record, read_prediction

_SCHEMA, _VERSION = "selfspec-tune/ranking", 3
KEPT_STARTS = 3  # of those given, to be predicted on every text and measured before all others


@dataclass(frozen=True, slots=True)
class Ranking:
    """What the measured study starts from."""

    costs: CostModel
    importance: Importance
    vocabulary: int | None
    candidates: list[Prediction]

    @property
    def queue(self) -> list[Prediction]:
        """The candidates in the order to measure them: the best starts, then by what is predicted."""
        return starts_first(self.candidates)


def may_win(draft: Draft, objective: Objective) -> bool:
    """Whether a search may end with the draft: the model itself is none that could be exported."""
    return objective is Objective.SHARED or not draft.skip_set.is_empty


def best_starts(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The first starts of ``predictions``, which are sorted."""
    return [prediction for prediction in predictions if prediction.origin == START][:KEPT_STARTS]


def starts_first(predictions: Sequence[Prediction]) -> list[Prediction]:
    """``predictions``, sorted, with the best starts in front."""
    return list(dict.fromkeys([*best_starts(predictions), *predictions]))


def all_with_prior(candidates: Sequence[Prediction], prior: AcceptancePrior) -> list[Prediction]:
    """The candidates with one prior for all: a study's drafts then differ in what it searches only."""
    drafts = (replace(c.draft, policy=with_prior(c.draft.policy, prior)) for c in candidates)
    return [replace(c, draft=draft) for c, draft in zip(candidates, drafts, strict=True)]


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
    with taken_apart(file):
        version, vocabulary = value["version"], value["vocabulary"]
        if vocabulary is not None:
            whole("vocabulary", vocabulary, 1, MOST_TOKEN_IDS)
        candidates = [read_prediction(record, num_layers) for record in value["candidates"]]
        ranking = Ranking(_costs(value, version, num_layers), _importance(value, version), vocabulary, candidates)
        whole("cost_model_seconds.num_layers", ranking.costs.num_layers, num_layers, num_layers)
        for kept in (ranking.importance.rises, ranking.importance.reliefs):
            if kept:  # none, where nothing was told
                whole("the number of sub-layers in importance", len(kept), 2 * num_layers, 2 * num_layers)
        return ranking


def _importance(value: dict[str, Any], version: int) -> Importance:
    """Versions 1 and 2 kept the rises alone."""
    kept = value["importance"]
    return Importance.from_dict(kept if version > 2 else {"rises": kept, "reliefs": [0.0] * len(kept)})


def _costs(value: dict[str, Any], version: int, num_layers: int) -> CostModel:
    """The cost model; version 1 kept one cost of each kind, at one precision and one context."""
    costs = value["cost_model_seconds"]
    if version > 1:
        return CostModel.from_dict(costs)
    one_each = {
        new: {Precision.SAME: costs[old]}
        for new, old in (("heads", "draft_base"), ("attention", "attention"), ("mlp", "mlp"))
    }
    return CostModel.from_dict({"verify": costs["verify"], "num_layers": num_layers, **one_each})
