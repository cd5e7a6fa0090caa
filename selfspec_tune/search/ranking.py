"""The stages before any measured trial: costs, importance, and candidates by proxy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median
from time import monotonic

from selfspec_tune.costs import CostModel
from selfspec_tune.draft import AcceptancePrior, Draft, DraftPolicy, PolicyKind
from selfspec_tune.engine.costs import CONTEXTS, CostPlan, measure_costs
from selfspec_tune.engine.teacher_forcing import DraftScorer, make_scorer
from selfspec_tune.measure.workload import Workload
from selfspec_tune.reporting import Candidate, Progress, Reporter
from selfspec_tune.requests import DraftOptions
from selfspec_tune.search.budget import WIDE_WINDOWS
from selfspec_tune.search.calibration import Answer, spread_windows
from selfspec_tune.search.proxy import (
    Prediction,
    Proxy,
    diverse,
    greedy_path,
    importance,
    local_moves,
    prefixes,
)
from selfspec_tune.search.replay import DRAFT_LENGTHS, EXIT_THRESHOLDS, best_policy, policies
from selfspec_tune.search.setting import draft_lookup, draft_precision
from selfspec_tune.skip_set import SkipSet
from selfspec_tune.statistics import Interval

NUM_PREFIXES = 12
NUM_PROXY_CANDIDATES = 6
_NARROW = (10, 24)  # windows × positions that thousands of candidates are scored on
_WIDE = (WIDE_WINDOWS, 40)  # those that the best few are scored on again
_POOL = 24
_LARGE_RESIDUAL = 0.05
_MOST_REPEATS = 200  # moves in a row that lead nowhere new: a small model's sets are used up


@dataclass(frozen=True, slots=True)
class Ranking:
    """What the measured study starts from."""

    costs: CostModel
    importance: list[float]
    vocabulary: int | None
    candidates: list[Prediction]


class Ranker:
    """Runs the stages before the trials on calibration answers."""

    def __init__(
        self,
        workload: Workload,
        answers: Sequence[Answer],
        options: DraftOptions,
        seed: int,
        reporter: Reporter,
    ) -> None:
        self._workload = workload
        self._answers = answers
        self._options = options
        self._seed = seed
        self._reporter = reporter
        self._num_layers = workload.loaded.num_layers
        self._precision = draft_precision(options, self._num_layers)

    def rank(self, seconds: float, cost_seconds: float) -> Ranking:
        """Importance, step costs in about ``cost_seconds``, then candidates by proxy for at most ``seconds``.

        The best candidates are re-scored on wider text.
        """
        narrow = self._scorer(*_NARROW)
        self._reporter.stage("importance", "each sub-layer skipped alone")
        total = 2 * self._num_layers
        rises = importance(narrow, self._num_layers, lambda i: self._reporter.progress(Progress(i, total)))
        costs = self._costs(cost_seconds)
        vocabulary = self._choose_vocabulary(narrow, rises, costs)
        costs = costs.with_vocabulary(vocabulary or self._workload.runner.vocabulary_size)
        ladder = prefixes(rises, self._num_layers, NUM_PREFIXES)
        proxy = self._proxy(narrow, costs, self._grid((3, 4, 6, 8), (0.4, 0.6, 0.8)), vocabulary)
        if narrow.is_token_exact:
            self._reporter.stage("proxy", "candidates predicted without decoding")
            self._propose(proxy, rises, ladder, seconds)
        wide = self._proxy(self._scorer(*_WIDE), costs, self._grid(DRAFT_LENGTHS, EXIT_THRESHOLDS), vocabulary)
        candidates = self._shortlist(proxy, wide, ladder)
        if self._options.policy == PolicyKind.COST_AWARE:
            candidates = with_prior(candidates, wide.prior(candidates[0].draft.skip_set))
        return Ranking(costs, rises, vocabulary, candidates)

    def _proxy(
        self, scorer: DraftScorer, costs: CostModel, grid: Sequence[DraftPolicy], vocabulary: int | None
    ) -> Proxy:
        return Proxy(scorer, costs, grid, vocabulary, precision=self._precision, ngram=draft_lookup(self._options))

    def _scorer(self, most: int, length: int) -> DraftScorer:
        spread = spread_windows(self._answers, length=length, most=most, seed=self._seed)
        return make_scorer(self._workload.runner, self._workload.loaded, [window for _, window in spread])

    def _grid(self, lengths: Sequence[int], thresholds: Sequence[float]) -> list[DraftPolicy]:
        options = self._options
        if options.max_draft_tokens is not None:
            lengths = (options.max_draft_tokens,)
        if options.exit_threshold is not None:
            thresholds = (options.exit_threshold,)
        return list(policies(PolicyKind(options.policy), lengths, thresholds))

    def _costs(self, seconds: float) -> CostModel:
        """The cost model at the middle of a typical calibration text, for every vocabulary in question."""
        self._reporter.stage("costs", "the engine's steps, timed")
        lengths = [len(answer.item.tokens) + len(answer.tokens) // 2 for answer in self._answers]
        plan = CostPlan(
            self._workload.loaded.context_length,
            home=round(median(lengths)),
            lengths=CONTEXTS,
            vocabularies=self._vocabularies(),
            precisions=() if self._precision.is_same else (self._precision,),
            seconds=seconds,
        )
        answer = self._answers[0]
        costs = measure_costs(self._workload.runner, [*answer.item.tokens, *answer.tokens], plan)
        if costs.residual > _LARGE_RESIDUAL:
            self._reporter.notice(
                f"Draft steps cost what their parts do only within {costs.residual:.0%}: predictions may be off by as "
                "much. A quiet machine makes them steadier."
            )
        return costs

    def _vocabularies(self) -> tuple[int | None, ...]:
        """How many token ids drafts may cover: what was asked for, or the whole and parts of it."""
        option, whole = self._options.vocabulary, self._workload.runner.vocabulary_size
        if option == "full":
            return (None,)
        if option != "auto":
            return (min(int(option), whole),)
        return (None, *(size for size in (whole // 2, whole // 4, whole // 8) if size > 0))

    def _choose_vocabulary(self, scorer: DraftScorer, rises: Sequence[float], costs: CostModel) -> int | None:
        """How much of the vocabulary to draft from: what predicts best for a middling draft."""
        sizes, whole = self._vocabularies(), self._workload.runner.vocabulary_size
        if len(sizes) == 1:
            return sizes[0]
        ladder = prefixes(rises, self._num_layers, NUM_PREFIXES)
        skip_set = ladder[len(ladder) // 3]
        grid = self._grid((3, 4, 6), (0.4, 0.6, 0.8))
        speedups: dict[int | None, float] = {}
        for size in sizes:
            trace = scorer.trace(skip_set, size, self._precision)
            steps = costs.with_vocabulary(size or whole).steps(Draft(skip_set, precision=self._precision))
            speedups[size] = best_policy(trace.matches, trace.confidences, steps, grid)[1]
        return max(speedups, key=lambda size: speedups[size])

    def _propose(self, proxy: Proxy, rises: Sequence[float], ladder: Sequence[SkipSet], seconds: float) -> None:
        """Prefixes, the greedy path, then local moves until the time is up."""
        begun, best, num_known, repeats = monotonic(), 0.0, 0, 0
        stream: Iterator[Prediction] = chain(
            (proxy(skip_set, "prefix") for skip_set in ladder),
            greedy_path(proxy, rises, self._num_layers),
            local_moves(proxy, rises, self._seed),
        )
        for count, prediction in enumerate(stream):
            elapsed = monotonic() - begun
            detail = f"{count} candidates, best predicted {best:.3f}× decode"
            self._reporter.progress(Progress(int(elapsed), int(seconds), seconds - elapsed, detail))
            if prediction.speedup > best:
                best = prediction.speedup
                self._reporter.best(_candidate(count, prediction))
            repeats = repeats + 1 if proxy.num_known == num_known else 0
            num_known = proxy.num_known
            if elapsed > seconds or repeats > _MOST_REPEATS:
                return

    def _shortlist(self, proxy: Proxy, wide: Proxy, ladder: Sequence[SkipSet]) -> list[Prediction]:
        """The best and most diverse by proxy, scored on more text, then every prefix."""
        pool = diverse(proxy.predictions, _POOL, least_distance=2)
        rescored = [wide(prediction.draft.skip_set, prediction.origin) for prediction in pool]
        rescored.sort(key=lambda prediction: -prediction.speedup)
        chosen = diverse(rescored, NUM_PROXY_CANDIDATES)
        ranked = sorted((wide(skip_set, "prefix") for skip_set in ladder), key=lambda p: -p.speedup)
        known = {prediction.draft.skip_set for prediction in chosen}
        return chosen + [prediction for prediction in ranked if prediction.draft.skip_set not in known]


def with_prior(candidates: Sequence[Prediction], prior: AcceptancePrior) -> list[Prediction]:
    """The candidates with one prior for all: a study's drafts then differ in what it searches only."""
    drafts = (replace(c.draft, policy=replace(c.draft.policy, prior=prior)) for c in candidates)
    return [replace(c, draft=draft) for c, draft in zip(candidates, drafts, strict=True)]


def _candidate(number: int, prediction: Prediction) -> Candidate:
    speedup = Interval(prediction.speedup, prediction.speedup, prediction.speedup)
    return Candidate(number, "predicted", prediction.draft.skip_set, speedup)
