"""A search from beginning to end.

    load ─► calibrate ─► importance ─► proxy ─► trials ─► finalists ─► test ─► skip.json

Every stage keeps what it found in the study's folder as it comes; the same command
resumes after any interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from typing import Any

from selfspec_tune.bench.contest import Contest, shortened
from selfspec_tune.bench.outcome import bench_result
from selfspec_tune.bench.run import bench_provenance, contender, make_check, reference_arms
from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.engine.teacher_forcing import make_scorer
from selfspec_tune.errors import BudgetError, LosslessError
from selfspec_tune.measure.arms import (
    SELF_SPECULATIVE,
    autoregressive_arm,
)
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.reporting import Candidate, Progress, Reporter
from selfspec_tune.requests import SearchRequest
from selfspec_tune.results import (
    BenchResult,
    PairedRun,
    SkipConfig,
)
from selfspec_tune.search import budget
from selfspec_tune.search.calibration import Answer, calibrate, spread_windows, trial_items
from selfspec_tune.search.conclusion import (
    agreement,
    bounded,
    plain_drift,
    predicted_from_counts,
    promise_kept,
    provisional_config,
    skip_config,
)
from selfspec_tune.search.encoding import Encoding
from selfspec_tune.search.proxy import Prediction
from selfspec_tune.search.ranking import Ranker, Ranking
from selfspec_tune.search.ranking_file import read_ranking, write_ranking
from selfspec_tune.search.replay import DRAFT_LENGTHS, EXIT_THRESHOLDS
from selfspec_tune.search.scoring import MatchScoring, PairedScoring, Scoring, TimedScoring
from selfspec_tune.search.setting import Setting, open_setting, tell_starts
from selfspec_tune.search.starts import START, to_measure, to_predict
from selfspec_tune.search.strategies import ScoredBy, strategy_for
from selfspec_tune.search.study_folder import StudyFolder
from selfspec_tune.search.trajectory import Incumbent, Trajectory
from selfspec_tune.search.trials import STOPPED_EARLY, MeasuredStudy, TrialSettings, as_candidate
from selfspec_tune.statistics import Interval
from selfspec_tune.summary import summarise


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search leaves: the file a user keeps, the test measurement, and where both are."""

    skip_config: SkipConfig
    bench: BenchResult | None
    out: Path
    interrupted: bool = False


def run_search(request: SearchRequest, reporter: Reporter, workload: Workload | None = None) -> SearchOutcome:
    """Search, or resume the search in ``request.out``.

    A finished search with the same budget is read, not repeated; a larger budget goes on
    from there. Ctrl-C during the trials writes the best draft so far, without a score. ``workload``:
    one that is open already, whose model and runner then serve.
    """
    folder = StudyFolder(request.out)
    with folder.locked():
        clock = budget.Clock(request.timeout_seconds, folder.spent_seconds)
        setting = open_setting(request, reporter, workload)
        folder.settle(setting.config())
        if folder.is_finished(request):
            reporter.notice(f"{folder.path} is finished; raise --trials or --timeout to go on, or give another --out.")
            return SearchOutcome(SkipConfig.load(folder.skip), BenchResult.load(folder.bench), folder.path)
        tell_starts(setting.starts, reporter)
        folder.note_finished(None)
        outcome = _Search(setting, folder, clock, reporter).run()
        if not outcome.interrupted:
            folder.note_finished(request)
        return outcome


class _Search:
    """The stages of one search over one setting."""

    def __init__(self, setting: Setting, folder: StudyFolder, clock: budget.Clock, reporter: Reporter) -> None:
        self._setting = setting
        self._workload = setting.workload
        self._folder = folder
        self._clock = clock
        self._reporter = reporter
        self._request = setting.request
        self._trajectory = Trajectory(folder.trajectory)
        self._strategy = strategy_for(setting.request.strategy)
        self._seed = setting.request.prompts.seed

    def run(self) -> SearchOutcome:
        reporter = self._reporter
        reporter.stage("calibrate", f"{len(self._setting.calibration)} prompts, the first {budget.TRIAL_ITEMS} now")
        answers = self._answers(self._setting.calibration[: budget.TRIAL_ITEMS])
        self._tick()
        if not trial_items(answers, length=budget.TRIAL_TOKENS, most=1, seed=self._seed):
            raise BudgetError(
                "The model's answers to the calibration prompts are too short to measure on "
                "(8 tokens or fewer each). Use prompts with longer answers."
            )
        self._check = make_check(self._workload, self._setting.calibration)
        ranking = self._rank()
        self._workload.costs = ranking.costs
        self._tick()
        study = self._study(ranking)
        try:
            shares = budget.shares_of(self._setting, ranking.costs.steps(self._first_draft(ranking)))
            self._run_trials(study, answers, ranking, shares)
            winner, promised = self._select(self._finalists(study, ranking), shares.num_selection)
            bench = self._test(winner, promised)
        except KeyboardInterrupt:
            return self._interrupted(study, ranking)
        config = self._conclude(winner, bench, ranking, study, promised)
        self._tick()
        return SearchOutcome(config, bench, self._folder.path)

    def _interrupted(self, study: MeasuredStudy, ranking: Ranking) -> SearchOutcome:
        """Keep the best so far for a user who stops here; the same command goes on."""
        self._tick()
        best = self._finalists(study, ranking)[0]
        provenance = {**self._provenance(), "search": self._search_record(study)}
        config = provisional_config(self._workload.loaded, best, provenance)
        if not self._folder.has_scored_skip_set():
            config.save(self._folder.skip)
        return SearchOutcome(config, None, self._folder.path, interrupted=True)

    def _note(self, best: Draft, score: float, stage: str) -> None:
        self._trajectory.note(Incumbent(self._clock.elapsed, best, score, stage))

    def _tick(self) -> None:
        self._folder.note_time(self._clock.elapsed)

    def _answers(self, items: Sequence[WorkItem]) -> list[Answer]:
        setting, folder = self._setting, self._folder
        return calibrate(self._workload, items, setting.first_draft(), folder.calibration, self._reporter)

    def _rank(self) -> Ranking:
        if self._folder.ranking.exists():
            return read_ranking(self._folder.ranking, self._workload.loaded.num_layers)
        seconds = budget.check_timeout(self._setting, self._clock.elapsed)
        ranker = Ranker(
            self._workload,
            self._setting.space,
            lambda count: self._answers(self._setting.calibration[:count]),
            self._request.draft,
            self._seed,
            self._reporter,
            held_out=lambda count: self._answers(self._setting.selection[:count]),
            starts=to_predict(self._setting.starts),
            log=self._folder.proxy,
            prepared=self._folder.preparation,
            on_best=lambda best: self._note(best.draft, best.speedup, "proxy"),
        )
        timeout = self._request.timeout_seconds
        if self._strategy.has_proxy:
            ranking = ranker.rank(seconds, budget.costs_seconds(timeout))
        else:
            ranking = ranker.costs_alone(budget.costs_seconds(timeout))
        write_ranking(self._folder.ranking, ranking)
        return ranking

    def _study(self, ranking: Ranking) -> MeasuredStudy:
        draft = self._request.draft
        kinds = draft.policy_kinds
        priors = [candidate.draft.policy.prior for candidate in ranking.candidates]
        encoding = Encoding(
            self._setting.space.with_vocabulary(ranking.vocabulary).costed_by(ranking.costs),
            kinds,
            _lengths(kinds) if draft.max_draft_tokens is None else (draft.max_draft_tokens,),
            EXIT_THRESHOLDS if draft.exit_threshold is None else (draft.exit_threshold,),
            next((prior for prior in priors if prior is not None), None),
            as_reals=self._strategy.as_reals,
        )
        name = self._request.strategy.value
        origin = "tpe" if self._strategy.has_proxy else name
        study = MeasuredStudy(self._folder.path, TrialSettings(encoding, self._seed, self._strategy.sampler, origin))
        study.enqueue(ranking.queue)
        if not self._strategy.has_proxy:
            starts = to_measure(self._setting.starts)
            study.enqueue([Prediction(encoding.space.projected(draft), 0.0, START) for draft in starts])
        return study

    def _first_draft(self, ranking: Ranking) -> Draft:
        return ranking.candidates[0].draft if ranking.candidates else self._setting.space.base

    def _run_trials(
        self, study: MeasuredStudy, answers: Sequence[Answer], ranking: Ranking, shares: budget.Shares
    ) -> None:
        """Trials until the budget ends."""
        reporter, most = self._reporter, budget.max_trials(self._request.trials, self._request.timeout_seconds)
        items = trial_items(answers, length=budget.TRIAL_TOKENS, most=budget.TRIAL_ITEMS, seed=self._seed + 1)
        first = self._first_draft(ranking)
        scoring, said = self._scoring(answers, items, ranking)
        reporter.stage("trials", said)
        for trial in study.ended:
            reporter.trial(as_candidate(trial, study.draft_of(trial.params)))
        for arm in (autoregressive_arm(self._workload), contender(self._workload, first)):
            arm.decode(items[0])  # a warm-up: the first trial is timed like every other
        starts = self._strategy.starts(self._setting.space, self._seed)
        while len(study.ended) < most and self._may_try(study, shares):
            number = len(study.ended)
            is_samplers = self._strategy.turn is not None and number % self._strategy.turn == 0
            draft = None if is_samplers or study.has_queued else next(starts, None)
            if draft is not None:
                study.enqueue([Prediction(draft, 0.0, self._request.strategy.value)])
            left = self._clock.left - shares.reserved
            reporter.progress(Progress(len(study.ended), most, left if isfinite(left) else None))
            candidate = study.run_trial(scoring)
            reporter.trial(candidate)
            if candidate.disagreement:
                reporter.notice(f"trial {candidate.number}: {candidate.disagreement}")
            self._report_best(study, candidate)
            self._tick()

    def _scoring(self, answers: Sequence[Answer], items: Sequence[WorkItem], ranking: Ranking) -> tuple[Scoring, str]:
        """How the strategy scores a trial, and that in words."""
        workload = self._workload
        if self._strategy.scored_by is ScoredBy.TIME:
            whole = [shortened(answer.item, budget.SELF_SD_TOKENS) for answer in answers[: budget.TRIAL_ITEMS]]
            return TimedScoring(workload, whole), f"{len(whole)} prompts, {budget.SELF_SD_TOKENS} tokens each, alone"
        if self._strategy.scored_by is ScoredBy.MATCHES:
            spread = spread_windows(answers, length=budget.SWIFT_TOKENS, most=1, seed=self._seed)
            scorer = make_scorer(workload.runner, workload.loaded, [window for _, window in spread])
            return MatchScoring(scorer), f"matches in {budget.SWIFT_TOKENS} tokens of text"
        said = f"{len(items)} windows of {budget.TRIAL_TOKENS} tokens each"
        return PairedScoring(workload, items, self._check, self._folder.trials, ranking.costs), said

    def _may_try(self, study: MeasuredStudy, shares: budget.Shares) -> bool:
        """At least one trial is measured, whatever the time; then only what leaves time for the rest."""
        return not study.ended or self._clock.left > shares.reserved + shares.trial

    def _report_best(self, study: MeasuredStudy, candidate: Candidate) -> None:
        ranking = study.ranking
        if ranking and ranking[0].number == candidate.number:
            self._note(study.draft_of(ranking[0].params), ranking[0].value or 0.0, "trials")
            self._reporter.best(candidate)

    def _finalists(self, study: MeasuredStudy, ranking: Ranking) -> list[Draft]:
        """The best measured and the best predicted drafts in turns: trials are noisy, predictions may be biased.

        The draft that skips nothing is among them wherever it may gain: what is chosen on little text can lose to it.
        """
        measured = [study.draft_of(trial.params) for trial in study.ranking]
        predicted = [prediction.draft for prediction in ranking.candidates]
        drafts = [draft for turn in zip_longest(measured, predicted) for draft in turn if draft is not None]
        drafts = [draft for draft in drafts if not study.is_lossy(draft)]
        finalists = list(dict.fromkeys(drafts))[: budget.NUM_FINALISTS]
        base = self._setting.space.base
        if finalists and not base.precision.is_same:
            whole = replace(base, policy=finalists[0].policy, vocabulary=finalists[0].vocabulary)
            if whole not in finalists and not study.is_lossy(whole):
                finalists[budget.NUM_FINALISTS - 1 :] = [whole]
        if not finalists:
            raise LosslessError(
                "Every candidate gave other tokens than plain decoding by more than a numerical tie: none can be "
                "trusted here. Run with --dtype float32 or --runner reference to tell why, and report it."
            )
        return finalists

    def _select(self, finalists: Sequence[Draft], num_items: int) -> tuple[Draft, Interval | None]:
        """Measure the finalists side by side on prompts that no trial has read; the fastest and its speedup."""
        items = self._setting.selection[:num_items]
        self._reporter.stage("finalists", f"{len(finalists)} on {len(items)} selection prompts")
        arms = [contender(self._workload, draft) for draft in finalists]
        short = [shortened(item, budget.SELECTION_TOKENS) for item in items]
        contest = Contest(self._workload, self._check, short, arms, log=self._folder.selection)
        runs = contest.run(self._reporter)
        self._tick()
        found = {arm.id: _end_to_end([run for run in runs if run.method == arm.id]) for arm in arms}
        speeds = {name: speedup.value if speedup else 0.0 for name, speedup in found.items()}  # 0: lossy, cannot win
        for arm in arms:
            self._reporter.notice(f"finalist {speeds[arm.id]:.3f}× on selection: {arm.description}")
        best = max(arms, key=lambda arm: speeds[arm.id])
        assert best.draft is not None
        self._note(best.draft, speeds[best.id], "selection")
        return best.draft, found[best.id]

    def _test(self, winner: Draft, promised: Interval | None) -> BenchResult:
        """The winner alone on the test split, once, with an A-A run and model.generate on a few prompts."""
        items = self._setting.test
        self._reporter.stage("test", f"the winner on {len(items)} held-out prompts: {winner.skip_set}")
        arm = contender(self._workload, winner)
        references = reference_arms(self._workload, arm, uniform_and_random=False)
        contest = Contest(
            self._workload,
            self._check,
            items,
            [arm],
            references,
            num_reference_items=budget.NUM_REFERENCE_ITEMS,
            log=self._folder.test,
        )
        runs = contest.run(self._reporter)
        result = bench_result(
            self._workload,
            contest.arms,
            runs,
            split="test",
            in_sample=False,
            provenance=self._provenance(selection_speedup=promised.value if promised else None),
        )
        result.save(self._folder.bench)
        return result

    def _provenance(self, **extra: Any) -> dict[str, Any]:
        return bench_provenance(self._workload, self._check, prompts=self._setting.prompt_record(), **extra)

    def _conclude(
        self, winner: Draft, bench: BenchResult, ranking: Ranking, study: MeasuredStudy, promised: Interval | None
    ) -> SkipConfig:
        """Write skip.json, and say how far prediction, selection and test agree."""
        method = next(method for method in bench.methods if method.name == SELF_SPECULATIVE)
        runs = [run for run in bench.runs if run.method == method.id]
        from_counts = predicted_from_counts(runs, winner, ranking.costs)
        if from_counts is not None:
            self._reporter.notice(agreement(method, from_counts, plain_drift(runs, winner, ranking.costs)))
        if promised is not None and method.end_to_end_speedup is not None:
            self._reporter.notice(promise_kept(promised, method.end_to_end_speedup))
        record = {
            **self._search_record(study),
            "predicted_decode_speedup": _predicted(winner, ranking),
            "decode_speedup_from_counts": from_counts,
            "selection_speedup": None if promised is None else bounded(promised),
        }
        config = skip_config(self._workload.loaded, winner, bench, record)
        config.save(self._folder.skip)
        return config

    def _search_record(self, study: MeasuredStudy) -> dict[str, Any]:
        starts = [start.to_dict() for start in self._setting.starts]
        return {
            **({"start_from": starts} if starts else {}),
            "seconds": round(self._clock.elapsed, 1),
            "trials": len(study.ended),
            "test_measurements": self._folder.num_tested(SELF_SPECULATIVE),
            "stopped_early": sum(bool(trial.user_attrs.get(STOPPED_EARLY)) for trial in study.ended),
        }


def _lengths(kinds: Sequence[PolicyKind]) -> tuple[int, ...]:
    """Draft lengths to search; a cost-aware policy finds its own up to the longest."""
    return (max(DRAFT_LENGTHS),) if set(kinds) == {PolicyKind.COST_AWARE} else DRAFT_LENGTHS


def _end_to_end(runs: Sequence[PairedRun]) -> Interval | None:
    """End-to-end ratio of totals; None for lossy runs."""
    return summarise("runs", "runs", runs).end_to_end_speedup


def _predicted(winner: Draft, ranking: Ranking) -> float | None:
    known = {prediction.draft: prediction.speedup for prediction in ranking.candidates}
    return known.get(winner)
