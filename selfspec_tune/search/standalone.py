"""What a search's draft would be worth as one that stands alone, as exported drafts do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.engine.teacher_forcing import make_scorer
from selfspec_tune.measure.workload import Workload
from selfspec_tune.requests import EXACT_MATCH
from selfspec_tune.search.calibration import Answer, spread_windows
from selfspec_tune.search.proxy import Proxy
from selfspec_tune.search.replay import policies, replay
from selfspec_tune.search.texts import STANDALONE
from selfspec_tune.skip_set import SkipSet


def predict_standalone(
    workload: Workload, answers: Sequence[Answer], skip_set: SkipSet, costs: CostModel, seed: int
) -> dict[str, Any] | None:
    """Predicted decode speedup and acceptance of the skip set with keys and values of its own, at its best length.

    On a few windows of ``answers``; None where these are too short, or the costs of a head over all token ids unknown.
    """
    whole_vocabulary = workload.runner.vocabulary_size
    if whole_vocabulary not in {costs.vocabulary, *costs.vocabularies}:
        return None

    text = STANDALONE.held_out
    spread = spread_windows(answers, length=text.length, most=text.num_windows, seed=seed)
    windows = [window for _, window in spread]
    if not windows:
        return None
    scorer = make_scorer(workload.runner, workload.loaded, windows, standalone=True)
    found = Proxy(scorer, costs.with_vocabulary(whole_vocabulary), list(policies(PolicyKind.FIXED)))(
        Draft(skip_set), "standalone"
    )
    counts = replay(scorer.trace(found.draft), found.draft.policy)
    drafted = sum(counts.drafted)
    return {
        "decode_speedup": found.speedup,
        "acceptance_rate": sum(counts.accepted) / drafted if drafted else None,
        "draft_tokens": found.draft.policy.max_draft_tokens,
        "windows": len(windows),
        **({} if workload.sampler.greedy else {"acceptance": EXACT_MATCH}),  # of the text that the target drew
    }
