"""Scoring skip sets without decoding, and what the measured study starts from.

A scorer's trace of a skip set is replayed through the grid of policies, and the cost
model turns the counts into a predicted speedup. Three sources of candidates:
importance-ranked prefixes, a re-ranked greedy path, and local moves from the best.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import AcceptancePrior, Draft, DraftPolicy, DraftPrecision, NgramLookup
from selfspec_tune.engine.teacher_forcing import DraftScorer, Trace
from selfspec_tune.search.lookups import look_up
from selfspec_tune.search.replay import acceptance_prior, best_policy
from selfspec_tune.skip_set import SkipSet

_SHORTLIST = 8
_PATIENCE = 4
_SAME = DraftPrecision()


@dataclass(frozen=True, slots=True)
class Prediction:
    """A draft and the decode speedup that replay and cost model predict for it."""

    draft: Draft
    speedup: float
    origin: str


class Proxy:
    """Predicts the decode speedup of skip sets; remembers what it has scored."""

    def __init__(
        self,
        scorer: DraftScorer,
        costs: CostModel,
        grid: Sequence[DraftPolicy],
        vocabulary: int | None,
        *,
        precision: DraftPrecision = _SAME,
        ngram: NgramLookup | None = None,
    ) -> None:
        self._scorer = scorer
        self._grid = grid
        self._vocabulary = vocabulary
        self._precision = precision
        self._ngram = ngram
        self._lookups = None if ngram is None else [look_up(window, ngram) for window in scorer.windows]
        self._known: dict[SkipSet, Prediction] = {}
        self.costs = costs

    def __call__(self, skip_set: SkipSet, origin: str) -> Prediction:
        if skip_set not in self._known:
            trace = self._scorer.trace(skip_set, self._vocabulary, self._precision)
            self._known[skip_set] = self._predict(skip_set, trace, origin)
        return self._known[skip_set]

    def _predict(self, skip_set: SkipSet, trace: Trace, origin: str) -> Prediction:
        draft = Draft(skip_set, precision=self._precision, vocabulary=self._vocabulary, ngram=self._ngram)
        policy, speedup = best_policy(
            trace.matches, trace.confidences, self.costs.steps(draft), self._grid, self._lookups, self._ngram
        )
        return Prediction(replace(draft, policy=policy), speedup, origin)

    def prior(self, skip_set: SkipSet) -> AcceptancePrior:
        """What acceptance to expect of a draft with ``skip_set``."""
        trace = self._scorer.trace(skip_set, self._vocabulary, self._precision)
        return acceptance_prior(trace.matches, trace.confidences)

    @property
    def num_known(self) -> int:
        """How many different skip sets were scored."""
        return len(self._known)

    @property
    def predictions(self) -> list[Prediction]:
        """Everything scored so far, the best first."""
        return sorted(self._known.values(), key=lambda prediction: -prediction.speedup)


def importance(scorer: DraftScorer, num_layers: int, on_step: Callable[[int], None] = lambda _: None) -> list[float]:
    """Per sub-layer (2i attention, 2i + 1 MLP of layer i): rise of the NLL in nats when it alone is skipped."""
    empty = SkipSet.empty(num_layers)
    whole = scorer.trace(empty).nll
    rises = []
    for index in range(2 * num_layers):
        on_step(index)
        rises.append(scorer.trace(empty.toggled(index)).nll - whole)
    return rises


def prefixes(rises: Sequence[float], num_layers: int, count: int) -> list[SkipSet]:
    """``count`` nested skip sets of the least important sub-layers, from a tenth to two thirds of all.

    Layer 0's attention is never among them: it is untouchable in every model tried, and
    two runtimes cannot load a draft without it.
    """
    order = [index for index in sorted(range(len(rises)), key=lambda i: rises[i]) if index != 0]
    fractions = [0.1 + (2 / 3 - 0.1) * i / max(count - 1, 1) for i in range(count)]
    sizes = sorted({max(1, round(fraction * len(rises))) for fraction in fractions})
    return [_of_indices(order[:size], num_layers) for size in sizes]


def greedy_path(proxy: Proxy, rises: Sequence[float], num_layers: int) -> Iterator[Prediction]:
    """Skip one more sub-layer at a time: the one that predicts best among the most promising.

    Importance changes as others are left out, so each step tries again the few with the
    highest gain when last tried, and the least important of those never tried (a lazy
    greedy search). Ends when several steps in a row have not improved on the best.
    """
    current = proxy(SkipSet.empty(num_layers), "greedy")
    untried = sorted(range(1, 2 * num_layers), key=lambda index: rises[index])
    gains: dict[int, float] = {}
    best, since_best = current.speedup, 0
    while (gains or untried) and since_best < _PATIENCE:
        promising = sorted(gains, key=lambda index: -gains[index])
        shortlist = promising[: _SHORTLIST - min(len(untried), _SHORTLIST // 2)]
        fresh = untried[: _SHORTLIST - len(shortlist)]
        untried = untried[len(fresh) :]
        tried: dict[int, Prediction] = {}
        for index in (*shortlist, *fresh):
            tried[index] = proxy(current.draft.skip_set.toggled(index), "greedy")
            yield tried[index]
        gains |= {index: prediction.speedup - current.speedup for index, prediction in tried.items()}
        chosen = max(tried, key=lambda index: tried[index].speedup)
        del gains[chosen]
        current = tried[chosen]
        since_best = 0 if current.speedup > best else since_best + 1
        best = max(best, current.speedup)


def local_moves(proxy: Proxy, rises: Sequence[float], seed: int) -> Iterator[Prediction]:
    """Endless add, drop and swap moves from the best sets so far, likelier where importance is low."""
    generator = random.Random(seed)
    harmless = [1.0 / (0.02 + max(rise, 0.0)) for rise in rises]
    while True:
        pool = proxy.predictions[:4]
        parent = generator.choice(pool).draft.skip_set
        yield proxy(_moved(parent, harmless, generator), "local")


def diverse(predictions: Sequence[Prediction], count: int, least_distance: int = 3) -> list[Prediction]:
    """The best predictions that differ from each other in at least ``least_distance`` sub-layers."""
    chosen: list[Prediction] = []
    for prediction in predictions:
        skip_set = prediction.draft.skip_set
        if all(skip_set.distance(other.draft.skip_set) >= least_distance for other in chosen):
            chosen.append(prediction)
        if len(chosen) == count:
            break
    return chosen


def _moved(parent: SkipSet, harmless: Sequence[float], generator: random.Random) -> SkipSet:
    flags = parent.to_flags()
    skipped = [index for index, skip in enumerate(flags) if skip]
    kept = [index for index, skip in enumerate(flags) if not skip and index != 0]
    move = generator.choice(("add", "drop", "swap", "swap"))
    if move != "drop" and kept:
        parent = parent.toggled(generator.choices(kept, [harmless[i] for i in kept])[0])
    if move != "add" and skipped:
        parent = parent.toggled(generator.choices(skipped, [1 / harmless[i] for i in skipped])[0])
    return parent


def _of_indices(indices: Sequence[int], num_layers: int) -> SkipSet:
    flags = [False] * (2 * num_layers)
    for index in indices:
        flags[index] = True
    return SkipSet.from_flags(flags)
