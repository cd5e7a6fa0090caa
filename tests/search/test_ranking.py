from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfspec_tune.draft import Draft, DraftPolicy, Precision
from selfspec_tune.draft.costs import ContextCosts, CostModel
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError
from selfspec_tune.search.stages.importance import Importance
from selfspec_tune.search.stages.proxy import Prediction
from selfspec_tune.search.stages.ranking import Ranking, read_ranking, write_ranking

SAME = Precision.SAME
VERIFY = (0.1, 0.11, 0.12)
COSTS = CostModel(
    VERIFY,
    {SAME: 0.02},
    {SAME: 0.01},
    {SAME: 0.03},
    num_layers=2,
    contexts=(ContextCosts(64, VERIFY, 0.01), ContextCosts(256, VERIFY, 0.02)),
    length=64,
    vocabularies={128: 0.02, 64: 0.015},
    vocabulary=128,
    residual=0.01,
)


def ranking() -> Ranking:
    draft = Draft(SkipSet(2, (1,), (0,)), DraftPolicy(max_draft_tokens=4), vocabulary=64)
    importance = Importance((0.1, 0.2, 0.3, 0.4), (0.0, 0.0, 0.05, 0.0))
    return Ranking(COSTS, importance, 64, [Prediction(draft, 1.2, "greedy")])


def test_a_ranking_survives_its_file_with_its_whole_cost_model(tmp_path: Path) -> None:
    write_ranking(tmp_path / "ranking.json", ranking())
    assert read_ranking(tmp_path / "ranking.json", 2) == ranking()


def test_a_ranking_of_the_first_version_is_still_read(tmp_path: Path) -> None:
    file = tmp_path / "ranking.json"
    write_ranking(file, ranking())
    old = json.loads(file.read_text())
    old["version"], old["importance"] = 1, [0.1, 0.2, 0.3, 0.4]
    old["cost_model_seconds"] = {"verify": [0.1, 0.11], "draft_base": 0.02, "attention": 0.01, "mlp": 0.03}
    file.write_text(json.dumps(old))
    costs = read_ranking(file, 2).costs
    assert costs.verify == (0.1, 0.11)
    assert costs.draft_step(Draft(SkipSet(2, (1,))), context=5000) == pytest.approx(0.02 + 0.01 + 2 * 0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "is version 9 of selfspec-tune/ranking; this program reads up to 3"),
        ({"version": 0}, "is version 0 of selfspec-tune/ranking; expected 1 to 3"),
        ({"version": "3"}, "states no version"),
        ({"schema": "selfspec-tune/choice"}, "holds selfspec-tune/choice; expected schema selfspec-tune/ranking"),
    ],
)
def test_a_ranking_of_another_version_or_schema_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    file = tmp_path / "ranking.json"
    write_ranking(file, ranking())
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(FileFormatError, match=message):
        read_ranking(file, 2)
