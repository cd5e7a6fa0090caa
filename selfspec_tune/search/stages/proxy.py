"""Scoring drafts without decoding: a scorer's trace, replayed through policies and counted by the cost model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from selfspec_tune.draft import AcceptancePrior, Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.rounds import acceptance_rate
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.teacher_forcing import DraftScorer, make_scorer
from selfspec_tune.measure.workload import Workload
from selfspec_tune.requests import EXACT_MATCH
from selfspec_tune.search.stages.calibration import STANDALONE, Answer, spread_windows
from selfspec_tune.search.stages.replay import (
    Finding,
    acceptance_prior,
    best_policy,
    find_along,
    policies,
    replay,
    with_prior,
)

_ANY_POLICY = DraftPolicy()
# Bests in a row that are none on the other text before the search on this one ends.
_PATIENCE = 4


@dataclass(frozen=True, slots=True)
class Prediction:
    """A draft and the decode speedup that replay and cost model predict for it."""

    draft: Draft
    speedup: float
    origin: str


class Findings:
    """What sources find along a scorer's text: the same for all drafts with the same sources."""

    def __init__(self, scorer: DraftScorer) -> None:
        self._scorer = scorer
        self._found: dict[object, list[list[Finding]]] = {}

    def of(self, draft: Draft) -> list[list[Finding]] | None:
        """By window and position; None for a draft without sources."""
        if not draft.sources:
            return None
        if draft.sources not in self._found:
            self._found[draft.sources] = [find_along(window, draft.sources) for window in self._scorer.windows]
        return self._found[draft.sources]


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
        self._findings = Findings(scorer)
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
            *(trace, self.costs.steps(draft), grid, self._findings.of(draft), draft.sources),
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
        self._findings = Findings(scorer)

    def speedup(self, draft: Draft, costs: CostModel) -> float:
        """Decode speedup by ``costs``."""
        steps, trace = costs.steps(draft), self._scorer.trace(draft)
        rounds = replay(trace, draft.policy, steps, self._findings.of(draft), draft.sources, self._answer_tokens)
        return steps.speedup(rounds)


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


class Overfit:
    """A running comparison of each new best with what the same draft does on held-out text; ``best``: most of that."""

    def __init__(self, held_out: Callable[[Draft], float | None]) -> None:
        """``held_out``: a draft's predicted speedup on the other text; None where there is no such text."""
        self._held_out = held_out
        self.best: float | None = None
        self._since_best = 0
        self._smallest = float("inf")
        self.gap = 0.0

    @property
    def is_growing(self) -> bool:
        """Whether several bests in a row promised more on the search's own text alone."""
        return self._since_best >= _PATIENCE

    def check(self, best: Prediction) -> None:
        """Take a new best of the search; ``gap`` is how much more it promises there than on the held-out text."""
        other = self._held_out(best.draft)
        if other is None:
            return
        self.gap = best.speedup / other - 1
        if self.best is None or other > self.best:
            self.best, self._since_best, self._smallest = other, 0, min(self._smallest, self.gap)
        elif self.gap > self._smallest:
            self._since_best += 1


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
    return {
        "decode_speedup": found.speedup,
        "acceptance_rate": acceptance_rate(replay(scorer.trace(found.draft), found.draft.policy)),
        "draft_tokens": found.draft.policy.max_draft_tokens,
        "windows": len(windows),
        **({} if workload.sampler.greedy else {"acceptance": EXACT_MATCH}),  # of the text that the target drew
    }
