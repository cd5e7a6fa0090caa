"""A search from beginning to end.

    load ─► calibrate ─► importance ─► proxy ─► trials ─► finalists ─► test ─► skip.json

Every stage keeps what it found in the study's folder as it comes; the same command
resumes after any interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from selfspec_tune.bench.contest import Contest, shortened
from selfspec_tune.bench.outcome import bench_result
from selfspec_tune.bench.run import bench_provenance, contender
from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.errors import BudgetError
from selfspec_tune.measure.arms import (
    NULL,
    SELF_SPECULATIVE,
    autoregressive_arm,
    generate_arm,
)
from selfspec_tune.measure.lossless import LosslessCheck, numeric_floor
from selfspec_tune.reporting import Candidate, Progress, Reporter
from selfspec_tune.requests import SearchRequest
from selfspec_tune.results import (
    BenchResult,
    DraftSettings,
    ModelInfo,
    PairedRun,
    Score,
    SkipConfig,
    SkipLayers,
)
from selfspec_tune.search import budget
from selfspec_tune.search.calibration import Answer, calibrate, trial_items
from selfspec_tune.search.ranking import Ranker, Ranking
from selfspec_tune.search.ranking_file import read_ranking, write_ranking
from selfspec_tune.search.setting import Setting, open_setting
from selfspec_tune.search.study_folder import StudyFolder
from selfspec_tune.search.trials import MeasuredStudy, TrialSettings, as_candidate
from selfspec_tune.summary import summarise


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """What a search leaves: the file a user keeps, the test measurement, and where both are."""

    skip_config: SkipConfig
    bench: BenchResult | None
    out: Path
    interrupted: bool = False


def run_search(request: SearchRequest, reporter: Reporter) -> SearchOutcome:
    """Search, or resume the search in ``request.out``.

    Ctrl-C during the trials ends them and goes on to the finalists with what was found;
    a second one leaves at once, with everything measured kept.
    """
    folder = StudyFolder(request.out)
    with folder.locked():
        clock = budget.Clock(request.timeout_seconds, folder.spent_seconds)
        setting = open_setting(request, reporter)
        folder.settle(setting.config())
        return _Search(setting, folder, clock, reporter).run()


class _Search:
    """The stages of one search over one setting."""

    def __init__(self, setting: Setting, folder: StudyFolder, clock: budget.Clock, reporter: Reporter) -> None:
        self._setting = setting
        self._workload = setting.workload
        self._folder = folder
        self._clock = clock
        self._reporter = reporter
        self._request = setting.request
        self._seed = setting.request.prompts.seed

    def run(self) -> SearchOutcome:
        reporter = self._reporter
        reporter.stage("calibrate", f"{len(self._setting.calibration)} prompts")
        answers = calibrate(self._workload, self._setting.calibration, self._folder.calibration, reporter)
        self._tick()
        self._check = self._lossless_check(answers)
        ranking = self._rank(answers)
        self._tick()
        study = self._study(ranking)
        interrupted = self._run_trials(study, answers, ranking)
        finalists = self._finalists(study, ranking)
        winner, selection_runs = self._select(finalists)
        bench = self._test(winner, ranking, selection_runs)
        outcome = self._conclude(winner, bench, ranking, study)
        self._tick()
        return SearchOutcome(outcome, bench, self._folder.path, interrupted)

    def _tick(self) -> None:
        self._folder.note_time(self._clock.elapsed)

    def _lossless_check(self, answers: Sequence[Answer]) -> LosslessCheck:
        dtype: torch.dtype = self._workload.loaded.dtype
        longest = max(answers, key=lambda answer: len(answer.tokens))
        floor = numeric_floor(self._workload.runner, longest.item, longest.tokens[:36], dtype=dtype)
        return LosslessCheck(self._workload.runner, floor, sampled=not self._workload.sampler.greedy)

    def _rank(self, answers: Sequence[Answer]) -> Ranking:
        if self._folder.ranking.exists():
            return read_ranking(self._folder.ranking, self._workload.loaded.num_layers)
        options = self._request.draft
        ranker = Ranker(self._workload, answers, options, self._seed, self._reporter)
        ranking = ranker.rank(budget.proxy_seconds(self._request.timeout_seconds))
        write_ranking(self._folder.ranking, ranking)
        return ranking

    def _study(self, ranking: Ranking) -> MeasuredStudy:
        kind = PolicyKind(self._request.draft.policy)
        settings = TrialSettings(self._workload.loaded.num_layers, kind, ranking.vocabulary, self._seed)
        study = MeasuredStudy(self._folder.path, settings)
        study.enqueue(ranking.candidates)
        return study

    def _run_trials(self, study: MeasuredStudy, answers: Sequence[Answer], ranking: Ranking) -> bool:
        """Trials until the budget ends; True if Ctrl-C ended them."""
        reporter, most = self._reporter, budget.max_trials(self._request.trials, self._request.timeout_seconds)
        items = trial_items(answers, length=budget.TRIAL_TOKENS, most=budget.TRIAL_ITEMS, seed=self._seed + 1)
        if not items:
            raise BudgetError(
                "The model's answers to the calibration prompts are too short to measure on "
                "(8 tokens or fewer each). Use prompts with longer answers."
            )
        shares = budget.shares_of(self._setting, ranking.costs)
        reporter.stage("trials", f"{len(items)} windows of {budget.TRIAL_TOKENS} tokens each")
        for trial in study.ended:
            reporter.trial(as_candidate(trial, study.draft_of(trial.params)))
        try:
            while len(study.ended) < most and self._may_try(study, shares):
                left = self._clock.left - shares.reserved
                reporter.progress(Progress(len(study.ended), most, left))
                candidate = study.run_trial(self._workload, items, self._check)
                reporter.trial(candidate)
                self._report_best(study, candidate)
                self._tick()
        except KeyboardInterrupt:
            reporter.notice("Interrupted: going on to the finalists with what was found (Ctrl-C again to leave).")
            return True
        return False

    def _may_try(self, study: MeasuredStudy, shares: budget.Shares) -> bool:
        """At least one trial is measured, whatever the time; then only what leaves time for the rest."""
        return not study.ended or self._clock.left > shares.reserved + shares.trial

    def _report_best(self, study: MeasuredStudy, candidate: Candidate) -> None:
        ranking = study.ranking
        if ranking and ranking[0].number == candidate.number:
            self._reporter.best(candidate)

    def _finalists(self, study: MeasuredStudy, ranking: Ranking) -> list[Draft]:
        """The best measured drafts; where too few ran to their end, the best predicted ones too."""
        drafts = [study.draft_of(trial.params) for trial in study.ranking]
        drafts += [prediction.draft for prediction in ranking.candidates]
        return list(dict.fromkeys(drafts))[: budget.NUM_FINALISTS]

    def _select(self, finalists: Sequence[Draft]) -> tuple[Draft, list[PairedRun]]:
        """Measure the finalists side by side on prompts that no trial has read; the fastest wins."""
        items = self._setting.selection[: budget.NUM_SELECTION_ITEMS]
        self._reporter.stage("finalists", f"{len(finalists)} on {len(items)} selection prompts")
        arms = [contender(self._workload, draft) for draft in finalists]
        short = [shortened(item, budget.SELECTION_TOKENS) for item in items]
        contest = Contest(self._workload, self._check, short, arms, log=self._folder.selection)
        runs = contest.run(self._reporter)
        self._tick()
        speeds = {arm.id: _speedup([run for run in runs if run.method == arm.id]) for arm in arms}
        for arm in arms:
            self._reporter.notice(f"finalist {speeds[arm.id]:.3f}× on selection: {arm.description}")
        best = max(arms, key=lambda arm: speeds[arm.id])
        assert best.draft is not None
        return best.draft, [run for run in runs if run.method == best.id]

    def _test(self, winner: Draft, ranking: Ranking, selection_runs: Sequence[PairedRun]) -> BenchResult:
        """The winner alone on the test split, once, with an A-A run and model.generate on a few prompts."""
        items = self._setting.test
        self._reporter.stage("test", f"the winner on {len(items)} held-out prompts: {winner.skip_set}")
        arm = contender(self._workload, winner)
        references = [autoregressive_arm(self._workload, NULL), generate_arm(self._workload)]
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
            provenance=bench_provenance(
                self._workload,
                self._check,
                prompts=self._setting.prompt_record(),
                selection_speedup=_speedup(selection_runs),
            ),
        )
        result.save(self._folder.bench)
        return result

    def _conclude(self, winner: Draft, bench: BenchResult, ranking: Ranking, study: MeasuredStudy) -> SkipConfig:
        method = next(method for method in bench.methods if method.name == SELF_SPECULATIVE)
        config = SkipConfig(
            model=ModelInfo.model_validate(self._workload.loaded.describe()),
            skip=SkipLayers.model_validate(winner.skip_set.to_dict()),
            draft=DraftSettings.model_validate(winner.to_dict()),
            score=Score(
                verdict=bench.verdict,
                end_to_end_speedup=method.end_to_end_speedup,
                decode_speedup=method.decode_speedup,
                acceptance_rate=method.acceptance_rate,
                mean_accepted_tokens=method.mean_accepted_tokens,
                split=bench.split,
                num_prompts=method.num_prompts,
            ),
            provenance={
                **bench.provenance,
                "search": {
                    "seconds": round(self._clock.elapsed, 1),
                    "trials": len(study.ended),
                    "stopped_early": len(study.ended) - len(study.ranking),
                    "predicted_decode_speedup": _predicted(winner, ranking),
                },
            },
        )
        config.save(self._folder.skip)
        return config


def _speedup(runs: Sequence[PairedRun]) -> float:
    """End-to-end ratio of totals; 0 for lossy runs, which can never win."""
    method = summarise("runs", "runs", runs)
    return method.end_to_end_speedup.value if method.end_to_end_speedup else 0.0


def _predicted(winner: Draft, ranking: Ranking) -> float | None:
    known = {prediction.draft: prediction.speedup for prediction in ranking.candidates}
    return known.get(winner)
