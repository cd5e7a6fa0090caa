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
from selfspec_tune.search import budget
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
    """Scores the drafts of a study, one a trial."""

    @property
    def about(self) -> str:
        """What a trial measures, in words."""

    def score(self, trial: Trial, draft: Draft) -> TrialScore:
        """Score ``draft``; a trial may be ended early."""


@dataclass(frozen=True, slots=True)
class PairedScoring:
    """The measured end-to-end speedup over ``items``, each decoded by both arms; hopeless trials end early.

    Every pair is appended to ``runs_file``, with the number of the search's ``session``.
    """

    workload: Workload
    items: Sequence[WorkItem]
    check: LosslessCheck
    runs_file: Path
    costs: CostModel | None = None
    session: int | None = None

    @property
    def about(self) -> str:
        """What a trial measures, in words."""
        longest = max(item.limits.max_new_tokens for item in self.items)
        return f"{len(self.items)} windows of {longest} tokens each"

    def score(self, trial: Trial, draft: Draft) -> TrialScore:
        """Decode item by item, until the pruner finds the draft surely worse than the best trial's."""
        baseline, candidate = autoregressive_arm(self.workload), self_speculative_arm(self.workload, draft)
        runs: list[PairedRun] = []
        for index, item in enumerate(self.items):
            # Trials alternate who goes first on an item, so that no prompt favours either arm.
            block = Block(item, 0, index, index + trial.number)
            (run,) = measure_block(self.workload, baseline, [candidate], block, self.check)
            runs.append(run.model_copy(update={"session": self.session}))
            append_jsonl(self.runs_file, {"trial": trial.number, **runs[-1].to_dict()})
            times = end_to_end_times(runs[-1:])
            trial.report(math.log(times.baseline[0] / times.candidate[0]), index)
            if _is_hopeless(trial, runs):
                break
        return self._score_of(runs, draft)

    def _score_of(self, runs: Sequence[PairedRun], draft: Draft) -> TrialScore:
        summary = summarise("trial", "trial", runs)
        counted = disagreement = None
        if self.costs is not None:
            counted = predicted_from_counts(runs, draft, self.costs)
            drift = plain_drift(runs, draft, self.costs)
            disagreement = _disagreement(summary.decode_speedup, counted, drift)
        return TrialScore(
            ratio_of_totals(*end_to_end_times(runs)[:2]),
            summary.end_to_end_speedup,
            summary.acceptance_rate,
            len(runs) < len(self.items),
            any(run.lossless == "mismatch" for run in runs),
            counted,
            disagreement,
        )


@dataclass(frozen=True, slots=True)
class TimedScoring:
    """Tokens a second over ``items``, prompts included, with no baseline beside it: as Self-SD's own search scores."""

    workload: Workload
    items: Sequence[WorkItem]

    @property
    def about(self) -> str:
        """What a trial measures, in words."""
        return f"{len(self.items)} prompts, {budget.SELF_SD_TOKENS} tokens each, alone"

    def score(self, trial: Trial, draft: Draft) -> TrialScore:
        """Decode every item with ``draft`` alone."""
        arm = self_speculative_arm(self.workload, draft)
        generations = [arm.decode(item) for item in self.items]
        seconds = sum(generation.total_seconds for generation in generations)
        rate = acceptance_rate([one for generation in generations for one in generation.rounds])
        return TrialScore(sum(len(generation.tokens) for generation in generations) / seconds, acceptance_rate=rate)


@dataclass(frozen=True, slots=True)
class MatchScoring:
    """The share of a text's tokens that the draft finds most probable too: as SWIFT scores, without decoding."""

    scorer: DraftScorer

    @property
    def about(self) -> str:
        """What a trial measures, in words."""
        return f"matches in {budget.SWIFT_TOKENS} tokens of text"

    def score(self, trial: Trial, draft: Draft) -> TrialScore:
        """Trace ``draft`` over the scorer's text."""
        return TrialScore(self.scorer.trace(draft).match_rate)


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
