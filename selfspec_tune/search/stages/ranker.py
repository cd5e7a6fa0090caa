"""Candidates without decoding: proposed on little text, the best of them tried on more and more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from statistics import mean

from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.engine.teacher_forcing import DraftScorer, TokenExactScorer
from selfspec_tune.errors import BudgetError
from selfspec_tune.intervals import Interval
from selfspec_tune.reporting import Candidate, Progress
from selfspec_tune.search import budget
from selfspec_tune.search.session import Session
from selfspec_tune.search.space import SearchSpace
from selfspec_tune.search.stages.calibration import Answer, Text, texts_of
from selfspec_tune.search.stages.candidates import Moves, greedy_path, knapsack, local_moves, prefixes
from selfspec_tune.search.stages.importance import by_worth
from selfspec_tune.search.stages.preparation import Preparation, Preparer
from selfspec_tune.search.stages.proxy import Judge, Overfit, Prediction, Proxy, diverse
from selfspec_tune.search.stages.ranking import (
    KEPT_STARTS,
    Ranking,
    all_with_prior,
    best_starts,
    may_win,
    read_ranking,
    starts_first,
    write_ranking,
)
from selfspec_tune.search.stages.replay import DRAFT_LENGTHS, EXIT_THRESHOLDS, policies, with_prior
from selfspec_tune.search.starts import START, to_predict
from selfspec_tune.search.study_files import ProxyLog

NUM_PREFIXES = 12
_MOST_REPEATS = 200  # moves in a row that lead nowhere new: a small model's drafts are used up
_MOST_BUDGETS = 32  # latencies of the dynamic programme
_KNAPSACK_SHARE = 0.2  # of the first text's time
_FEWEST_BUDGETS = 8
_CHECK_EVERY = 20  # candidates at least between two looks at the held-out text


def rank(session: Session) -> Ranking:
    """What the trials start from: the folder's ranking, else a new one in the time that the session has for it."""
    file, timeout = session.folder.ranking, session.request.timeout_seconds
    if file.exists():
        return read_ranking(file, session.workload.loaded.num_layers)
    ranker, for_costs = Ranker(session), budget.costs_seconds(timeout)
    if session.predicts:
        before = session.estimates.importance() + session.estimates.cost_model()
        spare = session.seconds_for_predictions(session.schedule.num_trials) - before
        ranking = ranker.rank(budget.proxy_seconds(timeout, spare), for_costs)
    else:
        ranking = ranker.costs_alone(for_costs)
    write_ranking(file, ranking)
    return ranking


class Ranker:
    """Runs the stages before the trials on calibration answers; those that only later texts read are made then.

    Everything found is kept in the session's folder, from which a killed search resumes.
    """

    def __init__(self, session: Session) -> None:
        setting, schedule = session.setting, session.schedule
        options = session.request.draft
        is_unpredicted = session.strategy.has_proxy and not session.predicts
        self._session = session
        self._options = replace(options, vocabulary="full") if is_unpredicted else options
        self._space = setting.space
        self._given = to_predict(setting.starts)
        self._held_out = setting.selection[: schedule.num_held_out]
        self._texts = texts_of(options.objective).narrowest(schedule.num_texts)
        self._log = ProxyLog(session.folder.proxy, setting.space.num_layers)

    @property
    def _narrow(self) -> Text:
        """The first text."""
        return self._texts.candidates[0]

    def costs_alone(self, cost_seconds: float) -> Ranking:
        """Step costs and the vocabulary, for a study that begins with no candidates."""
        known = self._prepare(lambda: self._scorer(self._narrow), cost_seconds, ranks=False)
        return Ranking(known.costs, known.importance, known.vocabulary, [])

    def _prepare(self, scorer: Callable[[], DraftScorer], cost_seconds: float, *, ranks: bool = True) -> Preparation:
        session = self._session
        preparer = Preparer(
            session.workload,
            self._space,
            self._answers_of(self._narrow),
            self._options.vocabulary,
            session.reporter,
            session.folder.preparation,
            session.seed,
            budget.importance_seconds(session.request.timeout_seconds),
        )
        importance = self._scorer(self._texts.importance) if ranks else None
        return preparer.prepare(scorer, self._grid(self._narrow), cost_seconds, importance)

    def rank(self, seconds: float, cost_seconds: float) -> Ranking:
        """Importance, step costs in about ``cost_seconds``, then candidates by proxy for about ``seconds``."""
        scorer = self._scorer(self._narrow)
        if scorer.approximation:
            self._session.reporter.notice(f"Predictions are approximate for this architecture: {scorer.approximation}.")
        known = self._prepare(lambda: scorer, cost_seconds)
        space = self._space.with_vocabulary(known.vocabulary).costed_by(known.costs)
        self._session.reporter.stage("proxy", "candidates predicted without decoding")
        left = self._session.seconds_for_predictions(num_trials=1)
        pool, wide = self._narrow_down(scorer, space, known, min(seconds, left))
        if PolicyKind.COST_AWARE in self._options.policy_kinds:
            pool = all_with_prior(pool, wide.prior(pool[0].draft))
        return Ranking(known.costs, known.importance, known.vocabulary, pool)

    def _narrow_down(
        self, scorer: DraftScorer, space: SearchSpace, known: Preparation, seconds: float
    ) -> tuple[list[Prediction], Proxy]:
        """The best and most diverse candidates, as the last and widest text ranks them; and the proxy of that text."""
        held_out = self._on_held_out(known.costs) if self._held_out else None
        moves = Moves(space, known.importance, self._session.seed)
        pool: list[Prediction] = []
        left = seconds
        for text in self._texts.candidates:
            proxy = self._proxy(text, known.costs, scorer if text is self._narrow else None)
            stream = self._tried_again(proxy, pool) if pool else self._starts(proxy, space, known, seconds)
            stream = chain(stream, local_moves(proxy, moves))
            self._climb(text, proxy, stream, text.share * left, Overfit(held_out) if held_out else None)
            left -= self._log.seconds(text.name)
            pool = self._kept(proxy, text)
        return pool, proxy

    def _kept(self, proxy: Proxy, text: Text) -> list[Prediction]:
        """The best and most diverse, and the best starts, the best first."""
        predictions = self._winnable(proxy)
        kept = {*diverse(predictions, text.keep, least_distance=2), *best_starts(predictions)}
        return [prediction for prediction in predictions if prediction in kept]

    def _winnable(self, proxy: Proxy) -> list[Prediction]:
        """Predictions of drafts that the search may end with, the best first."""
        return [prediction for prediction in proxy.predictions if may_win(prediction.draft, self._options.objective)]

    @staticmethod
    def _tried_again(proxy: Proxy, pool: Sequence[Prediction]) -> Iterator[Prediction]:
        """The best so far first, so that no worse one passes for it; then starts, for which there is always time."""
        order = dict.fromkeys([pool[0], *starts_first(pool)])
        return (proxy(prediction.draft, prediction.origin) for prediction in order)

    def _starts(self, proxy: Proxy, space: SearchSpace, known: Preparation, seconds: float) -> Iterator[Prediction]:
        """What was given to begin from, the base, prefixes, what the dynamic programme finds, and a greedy path on."""
        order, text = by_worth(known.importance, space, known.costs), self._narrow
        for draft in self._given:
            yield proxy(space.projected(draft), START)
        found = [proxy(space.base, "base")]
        yield found[0]
        for experts in space.experts[1:]:
            found.append(proxy(replace(space.base, experts=experts), "experts"))
            yield found[-1]
        for draft in prefixes(order, space, NUM_PREFIXES):
            found.append(proxy(draft, "prefix"))
            yield found[-1]
        earlier = [p.draft for p in self._log.predictions(text.name) if p.origin == "knapsack"]
        affordable = int(_KNAPSACK_SHARE * text.share * seconds / max(self._log.seconds_each(text.name), 1e-3))
        for draft in earlier or self._knapsack(proxy.scorer, space, known.costs, affordable):
            found.append(proxy(draft, "knapsack"))
            yield found[-1]
        yield from greedy_path(proxy, order, max(found, key=lambda prediction: prediction.speedup).draft)

    @staticmethod
    def _knapsack(scorer: DraftScorer, space: SearchSpace, costs: CostModel, affordable: int) -> list[Draft]:
        """As many drafts as ``affordable`` passes allow, half of them for scoring what is found."""
        num_budgets = min(_MOST_BUDGETS, affordable // 2)
        if not isinstance(scorer, TokenExactScorer) or num_budgets < _FEWEST_BUDGETS:
            return []
        return knapsack(scorer, space, costs, num_budgets)

    def _climb(
        self, text: Text, proxy: Proxy, stream: Iterable[Prediction], seconds: float, overfit: Overfit | None
    ) -> None:
        """Follow ``stream`` for ``seconds`` of scoring, or until it only learns the text by heart."""
        # What an interrupted run found was told then; here it only comes by again.
        best, unchecked, num_earlier = (
            max((p.speedup for p in self._winnable(proxy)), default=0.0),
            None,
            proxy.num_known,
        )
        fewest = budget.FEWEST_SCORED + (
            len(self._given) if text is self._narrow else min(len(self._given), KEPT_STARTS)
        )
        num_known, repeats, last_check = num_earlier, 0, 0
        for count, prediction in enumerate(stream, 1):
            repeats = 0 if proxy.num_known > num_known or count <= num_earlier else repeats + 1
            num_known = proxy.num_known
            if prediction.speedup > best and may_win(prediction.draft, self._options.objective):
                best, unchecked = prediction.speedup, prediction
                self._report_best(count, self._as_asked(prediction, proxy))
            spent = self._log.seconds(text.name)
            may_check = text is not self._narrow or spent > seconds / 2  # held-out answers cost time: first a search
            if overfit is not None and unchecked is not None and may_check and count >= last_check + _CHECK_EVERY:
                overfit.check(unchecked)
                unchecked, last_check = None, count
            self._report(text, count, best, seconds, overfit)
            is_enough = spent > seconds or repeats > _MOST_REPEATS or (overfit is not None and overfit.is_growing)
            if count >= fewest and is_enough:
                return

    def _report(self, text: Text, count: int, best: float, seconds: float, overfit: Overfit | None) -> None:
        spent = self._log.seconds(text.name)
        detail = f"{count} candidates on {text.name} text, best predicted {best:.3f}× decode"
        if overfit is not None and overfit.best is not None:
            detail += f", {overfit.gap:+.1%} over held-out text"
        self._session.reporter.progress(Progress(int(spent), int(seconds), seconds - spent, detail))

    def _report_best(self, count: int, prediction: Prediction) -> None:
        self._session.note(prediction.draft, prediction.speedup, "proxy")
        speedup = Interval(prediction.speedup, prediction.speedup, prediction.speedup)
        self._session.reporter.best(Candidate(count, "predicted", prediction.draft, speedup))

    def _on_held_out(self, costs: CostModel) -> Callable[[Draft], float | None]:
        """Predictions on held-out answers, which are asked for by the first one; None where these are too short."""
        made: list[Judge | None] = []

        def predict(draft: Draft) -> float | None:
            if not made:
                try:
                    made.append(Judge(self._scorer(self._texts.held_out), self._answer_tokens(self._texts.held_out)))
                except BudgetError:
                    made.append(None)
            return None if made[0] is None else made[0].speedup(draft, costs)

        return predict

    def _as_asked(self, prediction: Prediction, proxy: Proxy) -> Prediction:
        """With a policy of a kind that is searched, whatever led the first steps."""
        policy, options = prediction.draft.policy, self._options
        if policy.kind in options.policy_kinds:
            return prediction
        asked = DraftPolicy(options.policy_kinds[0], options.max_draft_tokens or max(DRAFT_LENGTHS))
        asked = with_prior(asked, proxy.prior(prediction.draft))
        return replace(prediction, draft=replace(prediction.draft, policy=asked))

    def _proxy(self, text: Text, costs: CostModel, scorer: DraftScorer | None = None) -> Proxy:
        def keep(prediction: Prediction, seconds: float) -> None:
            self._log.add(text.name, prediction, seconds)
            self._session.tick()

        return Proxy(
            scorer or self._scorer(text),
            costs,
            self._grid(text),
            answer_tokens=self._answer_tokens(text),
            earlier=self._log.predictions(text.name),
            on_new=keep,
        )

    def _answer_tokens(self, text: Text) -> int:
        """How long a typical answer of the text is."""
        return round(mean(len(answer.tokens) for answer in self._answers_of(text)))

    def _scorer(self, text: Text) -> DraftScorer:
        return text.scorer(self._session.workload, self._answers_of(text), self._session.seed)

    def _answers_of(self, text: Text) -> Sequence[Answer]:
        items = self._held_out if text is self._texts.held_out else self._session.setting.calibration
        return self._session.answers(items[: text.num_answers])

    def _grid(self, text: Text) -> list[DraftPolicy]:
        """The policies that a trace is replayed through: few on little text that others follow.

        There a threshold stands for a cost-aware policy, which drafts nothing where drafting does not pay: all
        drafts far from a gain would be alike, and no move from them an improvement.
        """
        options, is_coarse = self._options, text in self._texts.candidates[:-1][:1]
        kinds = options.policy_kinds
        if is_coarse and PolicyKind.COST_AWARE in kinds:
            kinds = (PolicyKind.THRESHOLD,)
        lengths: Sequence[int] = (3, 4, 6, 8) if is_coarse else DRAFT_LENGTHS
        thresholds: Sequence[float] = (0.4, 0.6, 0.8) if is_coarse else EXIT_THRESHOLDS
        if options.max_draft_tokens is not None:
            lengths = (options.max_draft_tokens,)
        if options.exit_threshold is not None:
            thresholds = (options.exit_threshold,)
        return [policy for kind in kinds for policy in policies(kind, lengths, thresholds)]
