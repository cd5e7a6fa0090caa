"""Where candidates come from: the importance order, a greedy path, moves from the best, and a knapsack.

Layer by layer, for every latency that the layers so far may have cost, the hidden states
most like the full model's are kept, and the choices that led to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.sublayer import sublayers_of
from selfspec_tune.engine.layers.sublayer import Stream
from selfspec_tune.engine.teacher_forcing import LayerwiseScorer
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages.importance import Importance
from selfspec_tune.search.stages.proxy import Prediction, Proxy

_SHORTLIST = 8
_PATIENCE = 4
_PARENTS = 4
_SKIPS = ("skip", "keep", "swap", "swap")
_PRECISIONS = ("raise", "raise", "lower", "head")
_EXPERTS = ("experts",)
# What a sub-layer that seems to cost nothing, or to relieve nothing, is from being chosen always or never.
_RISE_SOFTENING, _RELIEF_SOFTENING = 0.05, 0.02
_RANK = {Precision.INT4: 0, Precision.INT8: 1, Precision.SAME: 2}


def prefixes(order: Sequence[int], space: SearchSpace, count: int) -> list[Draft]:
    """The base without the first 1, … sub-layers of ``order``: ``count`` nested drafts, up to two thirds of all."""
    fractions = [0.1 + (2 / 3 - 0.1) * i / max(count - 1, 1) for i in range(count)]
    sizes = sorted({max(1, round(fraction * 2 * space.num_layers)) for fraction in fractions})
    return [space.skipping(frozenset(order[:size])) for size in sizes]


def greedy_path(proxy: Proxy, order: Sequence[int], begin: Draft) -> Iterator[Prediction]:
    """From ``begin`` skip one more sub-layer at a time: the one that predicts best among the most promising.

    Importance changes as others are left out, so each step tries again the few with the
    highest gain when last tried, and the first in ``order`` of those never tried (a lazy
    greedy search). Ends when several steps in a row have not improved on the best.
    """
    current = proxy(begin, "greedy")
    untried = [index for index in order if begin.sublayers[index] is not None]
    gains: dict[int, float] = {}
    best, since_best = current.speedup, 0
    while (gains or untried) and since_best < _PATIENCE:
        promising = sorted(gains, key=lambda index: -gains[index])
        shortlist = promising[: _SHORTLIST - min(len(untried), _SHORTLIST // 2)]
        fresh = untried[: _SHORTLIST - len(shortlist)]
        untried = untried[len(fresh) :]
        tried: dict[int, Prediction] = {}
        for index in (*shortlist, *fresh):
            tried[index] = proxy(current.draft.with_sublayer(index, None), "greedy")
            yield tried[index]
        gains |= {index: prediction.speedup - current.speedup for index, prediction in tried.items()}
        chosen = max(tried, key=lambda index: tried[index].speedup)
        del gains[chosen]
        current = tried[chosen]
        since_best = 0 if current.speedup > best else since_best + 1
        best = max(best, current.speedup)


def local_moves(proxy: Proxy, moves: Moves) -> Iterator[Prediction]:
    """Endless moves from the best drafts so far."""
    while True:
        parents = [prediction.draft for prediction in proxy.predictions[:_PARENTS]]
        yield proxy(moves(parents), "local")


class Moves:
    """Changes one or two things of a draft, likelier those that importance says may pay."""

    def __init__(self, space: SearchSpace, importance: Importance, seed: int) -> None:
        self._space = space
        self._random = Random(seed)
        self._harmless = [1.0 / (_RISE_SOFTENING + max(rise, 0.0)) for rise in importance.rises]
        self._relieving = [_RELIEF_SOFTENING + max(relief, 0.0) for relief in importance.reliefs]
        self._kinds = _SKIPS + (_PRECISIONS if space.is_joint else ())
        self._kinds += _EXPERTS if len(space.experts) > 1 else ()

    def __call__(self, parents: Sequence[Draft]) -> Draft:
        """A draft next to one of ``parents`` that fits the memory; a parent itself where a move leads nowhere."""
        parent = self._random.choice(parents)
        draft = self._moved(parent, self._random.choice(self._kinds))
        return draft if self._space.admits(draft) else parent

    def _moved(self, draft: Draft, kind: str) -> Draft:
        if kind in ("skip", "swap"):
            draft = self._change(draft, self._kept(draft), self._harmless, None)
        if kind in ("keep", "swap"):
            skipped = [i for i, precision in enumerate(draft.sublayers) if precision is None]
            index = self._pick(skipped, [1 / self._harmless[i] for i in skipped])
            if index is not None:
                draft = draft.with_sublayer(index, self._space.base.precision.of(index))
        if kind in ("raise", "lower"):
            draft = self._with_other_precision(draft, upwards=kind == "raise")
        if kind == "head":
            draft = draft.with_head(self._random.choice(self._space.heads))
        if kind == "experts":
            draft = replace(draft, experts=self._random.choice(self._space.experts))
        return draft

    def _kept(self, draft: Draft) -> list[int]:
        return [i for i in self._space.skippable if draft.sublayers[i] is not None]

    def _with_other_precision(self, draft: Draft, *, upwards: bool) -> Draft:
        choices: dict[int, list[Precision]] = {}
        for index, own in enumerate(draft.sublayers):
            if own is not None:
                there = [p for p in self._space.sublayers[index] if (_RANK[p] > _RANK[own]) is upwards and p is not own]
                choices |= {index: there} if there else {}
        indices = list(choices)
        weights = [self._relieving[i] if upwards else 1 / self._relieving[i] for i in indices]
        picked = self._pick(indices, weights)
        return draft if picked is None else draft.with_sublayer(picked, self._random.choice(choices[picked]))

    def _change(
        self, draft: Draft, indices: Sequence[int], weights: Sequence[float], precision: Precision | None
    ) -> Draft:
        index = self._pick(indices, [weights[i] for i in indices])
        return draft if index is None else draft.with_sublayer(index, precision)

    def _pick(self, indices: Sequence[int], weights: Sequence[float]) -> int | None:
        return self._random.choices(indices, weights)[0] if indices else None


@dataclass(frozen=True, slots=True)
class _State:
    """What a choice for each sub-layer so far costs (seconds a step) and gives."""

    choices: tuple[Precision | None, ...]
    seconds: float
    stream: Stream
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
    each = [
        costs.of_sublayer(sublayer, space.base.precision.of(sublayer.index))
        for sublayer in sublayers_of(space.num_layers)
    ]
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
                stream = scorer.through(state.stream, index, option, space.base.experts)
                place = round(num_budgets * seconds / whole)
                found = _State((*state.choices, option), seconds, stream, _likeness(stream.hidden, truth.hidden))
                if place not in best or found.likeness > best[place].likeness:
                    best[place] = found
        states = [best[place] for place in sorted(best)]
    return [space.base.with_sublayers(state.choices) for state in states]


@torch.inference_mode()
def _likeness(hidden: Tensor, truth: Tensor) -> float:
    return float(F.cosine_similarity(hidden.float(), truth.float(), dim=-1).mean())
