"""How a trial's draft is scored: by pairs against plain decoding, by its time alone, or without decoding."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import WilcoxonPruner
from optuna.trial import Trial

from selfspec_tune.draft import Draft
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.rounds import acceptance_rate
from selfspec_tune.engine.teacher_forcing import DraftScorer
from selfspec_tune.files import append_jsonl
from selfspec_tune.intervals import Interval, ratio_of_totals
from selfspec_tune.measure.arms import autoregressive_arm, self_speculative_arm
from selfspec_tune.measure.lossless import LosslessCheck
from selfspec_tune.measure.pairs import Block, measure_block
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.results import PairedRun
from selfspec_tune.results.metrics import end_to_end_times, summarise
from selfspec_tune.search.conclusion import LARGEST_GAP, plain_drift, predicted_from_counts, why_apart

# The pruner's test cannot reach 5 % with fewer pairs than five.
_FEWEST_PAIRS = 5


@dataclass(frozen=True, slots=True)
class TrialScore:
    """What a trial found. ``value`` is maximised; ``speedup`` is end to end, where it was measured.

    ``decode_speedup_from_counts`` knows no timing noise; ``disagreement`` says where the measured one is far from it.
    """

    value: float
    speedup: Interval | None = None
    acceptance_rate: float | None = None
    stopped_early: bool = False
    is_lossy: bool = False
    decode_speedup_from_counts: float | None = None
    disagreement: str | None = None


class Scoring(Protocol):
    """Scores drafts, one a trial."""

    def __call__(self, trial: Trial, draft: Draft) -> TrialScore:
        """Score ``draft``; a trial may be ended early."""


class PairedScoring:
    """The measured end-to-end speedup over ``items``, each decoded by both arms; hopeless trials end early."""

    def __init__(
        self,
        workload: Workload,
        items: Sequence[WorkItem],
        check: LosslessCheck,
        runs_file: Path,
        costs: CostModel | None = None,
        session: int | None = None,
    ) -> None:
        self._workload = workload
        self._items = items
        self._check = check
        self._runs_file = runs_file
        self._costs = costs
        self._session = session

    def __call__(self, trial: Trial, draft: Draft) -> TrialScore:
        runs, stopped = self._measure(trial, draft)
        summary = summarise("trial", "trial", runs)
        counted = disagreement = None
        if self._costs is not None:
            counted = predicted_from_counts(runs, draft, self._costs)
            drift = plain_drift(runs, draft, self._costs)
            disagreement = _disagreement(summary.decode_speedup, counted, drift)
        return TrialScore(
            ratio_of_totals(*end_to_end_times(runs)[:2]),
            summary.end_to_end_speedup,
            summary.acceptance_rate,
            stopped,
            any(run.lossless == "mismatch" for run in runs),
            counted,
            disagreement,
        )

    def _measure(self, trial: Trial, draft: Draft) -> tuple[list[PairedRun], bool]:
        """Pairs of the trial, and whether the pruner ended it before the last item."""
        baseline, candidate = autoregressive_arm(self._workload), self_speculative_arm(self._workload, draft)
        runs: list[PairedRun] = []
        for index, item in enumerate(self._items):
            # Trials alternate who goes first on an item, so that no prompt favours either arm.
            block = Block(item, 0, index, index + trial.number)
            measured = measure_block(self._workload, baseline, [candidate], block, self._check)
            runs += [run.model_copy(update={"session": self._session}) for run in measured]
            append_jsonl(self._runs_file, {"trial": trial.number, **runs[-1].to_dict()})
            times = end_to_end_times(runs[-1:])
            trial.report(math.log(times.baseline[0] / times.candidate[0]), index)
            if index + 1 < len(self._items) and _is_hopeless(trial, runs):
                return runs, True
        return runs, False


class TimedScoring:
    """Tokens a second over ``items``, prompts included, with no baseline beside it: as Self-SD's own search scores."""

    def __init__(self, workload: Workload, items: Sequence[WorkItem]) -> None:
        self._workload = workload
        self._items = items

    def __call__(self, trial: Trial, draft: Draft) -> TrialScore:
        arm = self_speculative_arm(self._workload, draft)
        generations = [arm.decode(item) for item in self._items]
        seconds = sum(generation.total_seconds for generation in generations)
        rate = acceptance_rate([one for generation in generations for one in generation.rounds])
        return TrialScore(sum(len(generation.tokens) for generation in generations) / seconds, acceptance_rate=rate)


class MatchScoring:
    """The share of a text's tokens that the draft finds most probable too: as SWIFT scores, without decoding."""

    def __init__(self, scorer: DraftScorer) -> None:
        self._scorer = scorer

    def __call__(self, trial: Trial, draft: Draft) -> TrialScore:
        return TrialScore(self._scorer.trace(draft).match_rate)


def pruner() -> WilcoxonPruner:
    """Ends a trial whose pairs are worse than the best trial's by a signed-rank test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return WilcoxonPruner(p_threshold=0.05, n_startup_steps=_FEWEST_PAIRS)


def _is_hopeless(trial: Trial, runs: Sequence[PairedRun]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return len(runs) >= _FEWEST_PAIRS and trial.should_prune()


def _disagreement(measured: Interval | None, counted: float | None, drift: float) -> str | None:
    if measured is None or counted is None or abs(measured.value / counted - 1) <= LARGEST_GAP:
        return None
    return f"decode {measured.value:.2f}× measured, {counted:.2f}× by its counts and the step times: {why_apart(drift)}"
