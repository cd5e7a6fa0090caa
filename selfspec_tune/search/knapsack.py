"""Candidates by dynamic programming over latency, as in KnapSpec (2026) and CLaSp (ACL 2025).

Layer by layer, for every latency that the layers so far may have cost, the hidden states
most like the full model's are kept, and the choices that led to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import Draft, Precision
from selfspec_tune.engine.teacher_forcing import LayerwiseScorer
from selfspec_tune.search.space import SearchSpace


@dataclass(frozen=True, slots=True)
class _State:
    """What a choice for each sub-layer so far costs (seconds a step) and gives."""

    choices: tuple[Precision | None, ...]
    seconds: float
    hidden: Tensor
    likeness: float


def knapsack(
    scorer: LayerwiseScorer,
    space: SearchSpace,
    costs: CostModel,
    num_budgets: int,
    on_step: Callable[[int], None] = lambda _: None,
) -> list[Draft]:
    """The best draft for each of ``num_budgets`` latencies from nothing kept to everything; the cheapest first.

    A sub-layer is skipped or kept as in the space's base. Likeness: the mean cosine between
    the draft's hidden states and the full model's after the same sub-layer. Costs about
    ``num_budgets`` passes over the scorer's text.
    """
    scorer.prepare(space.base)
    kept = space.base.sublayers
    each = [costs.of_sublayer(index, space.base.precision.of(index)) for index in range(len(kept))]
    whole = sum(each)
    states = [_State((), 0.0, scorer.embedded, 1.0)]
    truth = scorer.embedded
    for index, precision in enumerate(kept):
        on_step(index)
        truth = scorer.through(truth, index, Precision.SAME)
        options = (precision, None) if index in space.skippable else (precision,)
        best: dict[int, _State] = {}
        for state in states:
            for option in options:
                seconds = state.seconds + (0.0 if option is None else each[index])
                hidden = scorer.through(state.hidden, index, option)
                place = round(num_budgets * seconds / whole)
                found = _State((*state.choices, option), seconds, hidden, _likeness(hidden, truth))
                if place not in best or found.likeness > best[place].likeness:
                    best[place] = found
        states = [best[place] for place in sorted(best)]
    return [space.base.with_sublayers(state.choices) for state in states]


@torch.inference_mode()
def _likeness(hidden: Tensor, truth: Tensor) -> float:
    return float(F.cosine_similarity(hidden.float(), truth.float(), dim=-1).mean())
