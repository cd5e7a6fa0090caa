"""The measured study: Optuna over skip sets, scored by real drafting-plus-verification runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import WilcoxonPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from selfspec_tune.draft import AcceptancePrior, Draft, DraftPrecision, NgramLookup, PolicyKind
from selfspec_tune.files import append_jsonl, storage_error
from selfspec_tune.measure.arms import autoregressive_arm, self_speculative_arm
from selfspec_tune.measure.lossless import LosslessCheck
from selfspec_tune.measure.pairs import Block, measure_block
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.reporting import Candidate
from selfspec_tune.results import PairedRun
from selfspec_tune.search.proxy import Prediction
from selfspec_tune.search.replay import DRAFT_LENGTHS, EXIT_THRESHOLDS, policies
from selfspec_tune.skip_set import SkipSet
from selfspec_tune.statistics import Interval, ratio_of_totals
from selfspec_tune.summary import acceptance_rate, end_to_end_times, summarise

STOPPED_EARLY = "stopped_early"
LOSSY = "lossy"
_ORIGIN = "origin"
# The pruner's test cannot reach 5 % with fewer pairs than five.
_FEWEST_PAIRS = 5
_SAME = DraftPrecision()

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """What every trial of a study shares."""

    num_layers: int
    policy: PolicyKind
    vocabulary: int | None
    seed: int
    draft_lengths: tuple[int, ...] = DRAFT_LENGTHS
    exit_thresholds: tuple[float, ...] = EXIT_THRESHOLDS
    precision: DraftPrecision = _SAME
    ngram: NgramLookup | None = None
    prior: AcceptancePrior | None = None

    @property
    def has_threshold(self) -> bool:
        """Whether the policy knows an exit threshold to search."""
        return self.policy in (PolicyKind.THRESHOLD, PolicyKind.ADAPTIVE)


class MeasuredStudy:
    """An Optuna study kept in a journal file; every ended trial survives a crash.

    Only one process works on a study (the caller holds its lock), so an Optuna lock or a
    RUNNING trial found on opening was left by a process that died.
    """

    def __init__(self, folder: Path, settings: TrialSettings) -> None:
        self._settings = settings
        self._runs_file = folder / "trials.jsonl"
        self._journal = journal = folder / "journal.log"
        repair_journal(journal)
        with storage_errors(journal):
            backend = JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal)))
            self._study = optuna.create_study(
                study_name="selfspec-tune",
                storage=JournalStorage(backend),
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(),
            )
            # The same seed on resuming would repeat the same draws.
            started = len(self._study.trials)
            self._study.sampler = TPESampler(seed=settings.seed + 7919 * started, n_startup_trials=0)
            self._requeue_dead_trials()

    def _requeue_dead_trials(self) -> None:
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            # A trial that died while it was being asked for has only some of its parameters.
            parameters = trial.system_attrs.get("fixed_params") or trial.params
            if set(parameters) == set(self._distributions()):
                self._study.enqueue_trial(parameters, user_attrs=trial.user_attrs)
            # Last: a crash in between then measures a candidate twice instead of losing it.
            self._study.tell(trial.number, state=TrialState.FAIL)

    def enqueue(self, predictions: Sequence[Prediction]) -> None:
        """Put candidates at the front of the queue, once: a resumed study has them already."""
        with storage_errors(self._journal):
            for prediction in predictions:
                attributes = {_ORIGIN: prediction.origin, "predicted": prediction.speedup}
                parameters = self._parameters(prediction.draft)
                self._study.enqueue_trial(parameters, user_attrs=attributes, skip_if_exists=True)

    @property
    def ended(self) -> list[FrozenTrial]:
        """Trials that ended with a value, in order."""
        return self._study.get_trials(states=(TrialState.COMPLETE,))

    @property
    def ranking(self) -> list[FrozenTrial]:
        """Feasible trials, the best first: neither stopped early nor lossy."""
        feasible = [trial for trial in self.ended if is_feasible(trial)]
        return sorted(feasible, key=lambda trial: -(trial.value or 0.0))

    def is_lossy(self, draft: Draft) -> bool:
        """Whether a trial of ``draft`` had a mismatch."""
        return any(trial.user_attrs.get(LOSSY) and self.draft_of(trial.params) == draft for trial in self.ended)

    def run_trial(self, workload: Workload, items: Sequence[WorkItem], check: LosslessCheck) -> Candidate:
        """Ask for a draft, measure it item by item, tell its value."""
        with storage_errors(self._journal):
            trial = self._study.ask(self._distributions())
            draft = self.draft_of(trial.params)
            trial.set_user_attr("skip_set", str(draft.skip_set))
            runs, stopped = self._measure(trial, draft, workload, items, check)
            value = self._value(trial, runs, stopped)
            self._study.tell(trial, value)
        summary = summarise("trial", "trial", runs)
        origin = trial.user_attrs.get(_ORIGIN, "tpe")
        speedup = summary.end_to_end_speedup
        return Candidate(trial.number, origin, draft.skip_set, speedup, summary.acceptance_rate, stopped)

    def _measure(
        self, trial: Trial, draft: Draft, workload: Workload, items: Sequence[WorkItem], check: LosslessCheck
    ) -> tuple[list[PairedRun], bool]:
        """Pairs of the trial, and whether the pruner ended it before the last item."""
        baseline, candidate = autoregressive_arm(workload), self_speculative_arm(workload, draft)
        runs: list[PairedRun] = []
        for index, item in enumerate(items):
            # Trials alternate who goes first on an item, so that no prompt favours either arm.
            block = Block(item, 0, index, index + trial.number)
            runs += measure_block(workload, baseline, [candidate], block, check)
            append_jsonl(self._runs_file, {"trial": trial.number, **runs[-1].to_dict()})
            times = end_to_end_times(runs[-1:])
            trial.report(math.log(times.baseline[0] / times.candidate[0]), index)
            if index + 1 < len(items) and self._is_hopeless(trial, runs):
                return runs, True
        return runs, False

    @staticmethod
    def _is_hopeless(trial: Trial, runs: Sequence[PairedRun]) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return len(runs) >= _FEWEST_PAIRS and trial.should_prune()

    def _value(self, trial: Trial, runs: Sequence[PairedRun], stopped: bool) -> float:
        """The speedup over the items measured; a constraint keeps what must not win from winning.

        A trial that the pruner ended is told as complete with its partial ratio: TPE
        learns from it, and being infeasible it can never be the best.
        """
        lossy = any(run.lossless == "mismatch" for run in runs)
        value = ratio_of_totals(*end_to_end_times(runs)[:2])
        # Among infeasible trials Optuna prefers the smaller violation: the nearer to the best, the better.
        best = max((other.value or 0.0 for other in self.ranking), default=value)
        trial.set_constraint(STOPPED_EARLY, max(best - value, 1e-6) if stopped else -1.0)
        trial.set_constraint(LOSSY, 1.0 if lossy else -1.0)
        trial.set_user_attr(STOPPED_EARLY, stopped)
        trial.set_user_attr(LOSSY, lossy)
        trial.set_user_attr("acceptance_rate", acceptance_rate(runs))
        return value

    def draft_of(self, parameters: dict[str, Any]) -> Draft:
        """The draft that a trial's parameters stand for."""
        num_layers = self._settings.num_layers
        flags = [bool(parameters[name]) for name in _sublayer_parameters(num_layers)]
        settings = self._settings
        (policy,) = policies(
            settings.policy, [int(parameters["max_draft_tokens"])], [float(parameters.get("exit_threshold", 0.0))]
        )
        policy = replace(policy, prior=settings.prior)
        return Draft(SkipSet.from_flags(flags), policy, settings.precision, settings.vocabulary, settings.ngram)

    def _parameters(self, draft: Draft) -> dict[str, Any]:
        names = _sublayer_parameters(self._settings.num_layers)
        parameters: dict[str, Any] = dict(zip(names, draft.skip_set.to_flags(), strict=True))
        parameters["max_draft_tokens"] = draft.policy.max_draft_tokens
        if self._settings.has_threshold:
            parameters["exit_threshold"] = draft.policy.exit_threshold
        return parameters

    def _distributions(self) -> dict[str, Any]:
        names = _sublayer_parameters(self._settings.num_layers)
        space: dict[str, Any] = {name: CategoricalDistribution((False, True)) for name in names}
        space["max_draft_tokens"] = CategoricalDistribution(self._settings.draft_lengths)
        if self._settings.has_threshold:
            space["exit_threshold"] = CategoricalDistribution(self._settings.exit_thresholds)
        return space


def _pruner() -> WilcoxonPruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return WilcoxonPruner(p_threshold=0.05, n_startup_steps=_FEWEST_PAIRS)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial ran to its end without a mismatch."""
    return not trial.user_attrs.get(STOPPED_EARLY) and not trial.user_attrs.get(LOSSY)


def as_candidate(trial: FrozenTrial, draft: Draft) -> Candidate:
    """A trial of an earlier session, for display; its interval is not kept."""
    value = trial.value or 0.0
    speedup = None if trial.user_attrs.get(LOSSY) else Interval(value, value, value)
    origin = trial.user_attrs.get(_ORIGIN, "tpe")
    rate = trial.user_attrs.get("acceptance_rate")
    return Candidate(trial.number, origin, draft.skip_set, speedup, rate, bool(trial.user_attrs.get(STOPPED_EARLY)))


def repair_journal(journal: Path) -> None:
    """Undo what a killed process leaves: a torn last line, and a lock without an owner.

    Optuna's reader fails on a torn line, and waits 30 s for a lock. The caller holds the
    study's own lock, so nobody else is writing.
    """
    Path(f"{journal}.lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failed write (disk full, no permission) into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def _sublayer_parameters(num_layers: int) -> list[str]:
    """Parameter names in the order of `SkipSet.to_flags`."""
    return [f"{kind}_{layer}" for layer in range(num_layers) for kind in ("attn", "mlp")]
