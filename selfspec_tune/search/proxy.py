"""Scoring drafts without decoding: a scorer's trace, replayed through policies and counted by the cost model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from time import monotonic

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import AcceptancePrior, Draft, DraftPolicy
from selfspec_tune.engine.teacher_forcing import DraftScorer
from selfspec_tune.search.lookups import look_up
from selfspec_tune.search.replay import LookedUp, acceptance_prior, best_policy, replay, with_prior

_ANY_POLICY = DraftPolicy()


@dataclass(frozen=True, slots=True)
class Prediction:
    """A draft and the decode speedup that replay and cost model predict for it."""

    draft: Draft
    speedup: float
    origin: str


class Lookups:
    """What lookups find along a scorer's text: the same for all drafts with the same lookup."""

    def __init__(self, scorer: DraftScorer) -> None:
        self._scorer = scorer
        self._found: dict[object, list[list[LookedUp]]] = {}

    def of(self, draft: Draft) -> list[list[LookedUp]] | None:
        """By window and position; None for a draft that looks nothing up."""
        if draft.ngram is None:
            return None
        if draft.ngram not in self._found:
            self._found[draft.ngram] = [look_up(window, draft.ngram) for window in self._scorer.windows]
        return self._found[draft.ngram]


class Proxy:
    """Predicts the decode speedup of drafts on the scorer's text; remembers what it has scored.

    Each gets the best policy of ``grid``, whatever its own. With ``answer_tokens`` windows follow each other in
    generations as long as a typical answer, and a cost-aware policy knows the draft's acceptance, as it does
    after a search; without, every window is a generation of a draft that nothing is known of. ``earlier``:
    what an earlier run predicted on the same text; ``on_new`` gets each further prediction and its seconds.
    """

    def __init__(
        self,
        scorer: DraftScorer,
        costs: CostModel,
        grid: Sequence[DraftPolicy],
        *,
        answer_tokens: int = 0,
        earlier: Iterable[Prediction] = (),
        on_new: Callable[[Prediction, float], None] = lambda prediction, seconds: None,
    ) -> None:
        self.scorer = scorer
        self.costs = costs
        self._grid = grid
        self._answer_tokens = answer_tokens
        self._on_new = on_new
        self._lookups = Lookups(scorer)
        self._known = {_key(prediction.draft): prediction for prediction in earlier}

    def __call__(self, draft: Draft, origin: str) -> Prediction:
        key = _key(draft)
        if key not in self._known:
            begun = monotonic()
            self._known[key] = prediction = self._predict(key, origin)
            self._on_new(prediction, monotonic() - begun)
        return self._known[key]

    def _predict(self, draft: Draft, origin: str) -> Prediction:
        trace, grid = self.scorer.trace(draft), self._grid
        if self._answer_tokens:
            prior = acceptance_prior(trace)
            grid = [with_prior(policy, prior) for policy in grid]
        policy, speedup = best_policy(
            *(trace, self.costs.steps(draft), grid, self._lookups.of(draft), draft.ngram),
            answer_tokens=self._answer_tokens,
        )
        return Prediction(replace(draft, policy=policy), speedup, origin)

    def prior(self, draft: Draft) -> AcceptancePrior:
        """What acceptance to expect of ``draft``."""
        return acceptance_prior(self.scorer.trace(draft))

    @property
    def num_known(self) -> int:
        """How many different drafts were scored."""
        return len(self._known)

    @property
    def predictions(self) -> list[Prediction]:
        """Everything scored so far, the best first."""
        return sorted(self._known.values(), key=lambda prediction: -prediction.speedup)


class Judge:
    """Predicts what drafts gain on the scorer's text under their own policies, which were chosen on another."""

    def __init__(self, scorer: DraftScorer, answer_tokens: int) -> None:
        self._scorer = scorer
        self._answer_tokens = answer_tokens
        self._lookups = Lookups(scorer)

    def speedup(self, draft: Draft, costs: CostModel) -> float:
        """Decode speedup by ``costs``."""
        steps, trace = costs.steps(draft), self._scorer.trace(draft)
        counts = replay(trace, draft.policy, steps, self._lookups.of(draft), draft.ngram, self._answer_tokens)
        return steps.speedup(counts)


def _key(draft: Draft) -> Draft:
    return replace(draft, policy=_ANY_POLICY)


def distance(one: Draft, other: Draft) -> int:
    """In how many sub-layers two drafts of a model differ."""
    return sum(a is not b for a, b in zip(one.sublayers, other.sublayers, strict=True))


def diverse(predictions: Sequence[Prediction], count: int, least_distance: int = 3) -> list[Prediction]:
    """The best predictions that differ from each other in at least ``least_distance`` sub-layers."""
    chosen: list[Prediction] = []
    for prediction in predictions:
        if all(distance(prediction.draft, other.draft) >= least_distance for other in chosen):
            chosen.append(prediction)
        if len(chosen) == count:
            break
    return chosen
