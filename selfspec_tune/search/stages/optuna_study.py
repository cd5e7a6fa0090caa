"""The study: Optuna over drafts, kept in a journal."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from selfspec_tune.checks import number
from selfspec_tune.draft import Draft
from selfspec_tune.errors import UsageError
from selfspec_tune.files import storage_error, taken_apart
from selfspec_tune.intervals import Interval
from selfspec_tune.reporting import Candidate
from selfspec_tune.search.space import Encoding
from selfspec_tune.search.stages.proxy import Prediction
from selfspec_tune.search.stages.scoring import TrialScore, pruner

STOPPED_EARLY = "stopped_early"
LOSSY = "lossy"
_ORIGIN = "origin"
_SESSION = "session"
_IS_SPEEDUP = "is_speedup"  # whether its value is one, or what else the strategy scores by

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, slots=True)
class TrialSettings:
    """What every trial of a study shares. ``origin``: what proposes those that nobody enqueued, by ``sampler``.

    ``session``: the number of the search's session that runs them.
    """

    encoding: Encoding
    seed: int
    sampler: Callable[[int], BaseSampler]
    origin: str = "tpe"
    session: int | None = None


class MeasuredStudy:
    """An Optuna study kept in a journal file; every ended trial survives a crash.

    Only one process works on a study (the caller holds its lock), so an Optuna lock or a
    RUNNING trial found on opening was left by a process that died.
    """

    def __init__(self, folder: Path, settings: TrialSettings) -> None:
        self._settings = settings
        self.folder = folder
        self._journal = journal = folder / "journal.log"
        repair_journal(journal)
        with storage_errors(journal), taken_apart(journal):
            backend = JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal)))
            self._study = optuna.create_study(
                study_name="selfspec-tune",
                storage=JournalStorage(backend),
                direction="maximize",
                load_if_exists=True,
                pruner=pruner(),
            )
            # The same seed on resuming would repeat the same draws.
            started = len(self._study.trials)
            self._study.sampler = settings.sampler(settings.seed + 7919 * started)
            self._check_trials()
            self._requeue_dead_trials()

    def _check_trials(self) -> None:
        """Raise `UsageError` or what else a trial raises that no search has left so."""
        for trial in self.ended:
            self.draft_of(trial.params)
            number("value", trial.value)
            for name in (STOPPED_EARLY, LOSSY, _IS_SPEEDUP):
                if not isinstance(trial.user_attrs.get(name, False), bool):
                    raise UsageError(f"{name} of trial {trial.number} is neither true nor false.")
            if (rate := trial.user_attrs.get("acceptance_rate")) is not None:
                number("acceptance_rate", rate)

    def _requeue_dead_trials(self) -> None:
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            # A trial that died while it was being asked for has only some of its parameters.
            parameters = trial.system_attrs.get("fixed_params") or trial.params
            if set(parameters) == set(self._settings.encoding.choices):
                self._study.enqueue_trial(parameters, user_attrs=trial.user_attrs)
            # Last: a crash in between then measures a candidate twice instead of losing it.
            self._study.tell(trial.number, state=TrialState.FAIL)

    def enqueue(self, predictions: Sequence[Prediction]) -> None:
        """Put candidates at the front of the queue, once: a resumed study has them already."""
        with storage_errors(self._journal):
            for prediction in predictions:
                attributes = {_ORIGIN: prediction.origin, "predicted": prediction.speedup}
                parameters = self._settings.encoding.parameters(prediction.draft)
                self._study.enqueue_trial(parameters, user_attrs=attributes, skip_if_exists=True)

    @property
    def has_queued(self) -> bool:
        """Whether an enqueued candidate waits for its trial."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    @property
    def ended(self) -> list[FrozenTrial]:
        """Trials that ended with a value, in order; not to be changed, for the study shares them."""
        return self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    @property
    def ranking(self) -> list[FrozenTrial]:
        """Feasible trials, the best first: neither stopped early nor lossy."""
        feasible = [trial for trial in self.ended if is_feasible(trial)]
        return sorted(feasible, key=lambda trial: -(trial.value or 0.0))

    @property
    def sessions(self) -> list[int | None]:
        """The session of each ended trial; None for one of before sessions were kept."""
        return [trial.user_attrs.get(_SESSION) for trial in self.ended]

    def is_lossy(self, draft: Draft) -> bool:
        """Whether a trial of ``draft`` had a mismatch."""
        return any(trial.user_attrs.get(LOSSY) and self.draft_of(trial.params) == draft for trial in self.ended)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """A trial runs within it, from `ask` to `tell`: a failed write of the journal is a `StorageError` there."""
        with storage_errors(self._journal), _quiet():
            yield

    def ask(self) -> tuple[Trial, Draft]:
        """The next trial and the draft that it scores: what is enqueued first, then what the sampler proposes."""
        trial = self._study.ask(self._settings.encoding.distributions)
        draft = self.draft_of(trial.params)
        trial.set_user_attr("skip_set", str(draft.skip_set))
        trial.set_user_attr(_SESSION, self._settings.session)
        return trial, draft

    def tell(self, trial: Trial, score: TrialScore) -> Candidate:
        """End a trial with its score; what it was, for display.

        One that was ended early is told as complete with its partial score: the sampler
        learns from it, and being infeasible it can never be the best.
        """
        # Among infeasible trials Optuna prefers the smaller violation: the nearer to the best, the better.
        best = max((other.value or 0.0 for other in self.ranking), default=score.value)
        trial.set_constraint(STOPPED_EARLY, max(best - score.value, 1e-6) if score.stopped_early else -1.0)
        trial.set_constraint(LOSSY, 1.0 if score.is_lossy else -1.0)
        trial.set_user_attr(STOPPED_EARLY, score.stopped_early)
        trial.set_user_attr(LOSSY, score.is_lossy)
        trial.set_user_attr(_IS_SPEEDUP, score.speedup is not None)
        trial.set_user_attr("acceptance_rate", score.acceptance_rate)
        trial.set_user_attr("decode_speedup_from_counts", score.decode_speedup_from_counts)
        self._study.tell(trial, score.value)
        return Candidate(
            trial.number,
            trial.user_attrs.get(_ORIGIN, self._settings.origin),
            self.draft_of(trial.params),
            score.speedup,
            score.acceptance_rate,
            score.stopped_early,
            score.disagreement,
        )

    def as_candidate(self, trial: FrozenTrial) -> Candidate:
        """A trial of an earlier session, for display; its interval is not kept."""
        value, attributes = trial.value or 0.0, trial.user_attrs
        has_speedup = attributes.get(_IS_SPEEDUP, True) and not attributes.get(LOSSY)
        return Candidate(
            trial.number,
            attributes.get(_ORIGIN, self._settings.origin),
            self.draft_of(trial.params),
            Interval(value, value, value) if has_speedup else None,
            attributes.get("acceptance_rate"),
            bool(attributes.get(STOPPED_EARLY)),
        )

    def draft_of(self, parameters: dict[str, Any]) -> Draft:
        """The draft that a trial's parameters stand for."""
        return self._settings.encoding.draft(parameters)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial ran to its end without a mismatch."""
    return not trial.user_attrs.get(STOPPED_EARLY) and not trial.user_attrs.get(LOSSY)


def repair_journal(journal: Path) -> None:
    """Undo what a killed process leaves: a torn last line, and a lock without an owner.

    Optuna's reader fails on a torn line, and waits 30 s for a lock. The caller holds the
    study's own lock, so nobody else is writing.
    """
    for lock in journal.parent.glob(f"{glob.escape(journal.name)}.lock*"):  # renamed on the way to being removed
        lock.unlink(missing_ok=True)
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with journal.open("r+b") as file:
            file.truncate(whole)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without CMA-ES's warning that it learns from infeasible trials like from all others: they are never the best."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Constraints have been set", UserWarning)
        yield


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failed write (disk full, no permission) into a `StorageError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error
