"""What a study's journal holds, read apart from the program's own code."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

EndedTrials = dict[int, tuple[float | None, str]]


def ended_trials(journal: Path) -> EndedTrials:
    """Value and parameters of every trial that ended with one, by number; the journal itself is left alone."""
    from optuna.trial import TrialState

    ended = (trial for trial in all_trials(journal) if trial.state is TrialState.COMPLETE)
    return {trial.number: (trial.value, str(sorted(trial.params.items()))) for trial in ended}


def all_trials(journal: Path) -> list[FrozenTrial]:
    """Every trial, those that wait for their turn too; none where there is no journal yet.

    A copy is read, cut after its last whole line: a killed process may leave a torn one.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if not journal.exists():
        return []
    content = journal.read_bytes()
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / journal.name
        copy.write_bytes(content[: content.rfind(b"\n") + 1])
        storage = JournalStorage(JournalFileBackend(str(copy)))
        names = optuna.get_all_study_names(storage)
        studies = [optuna.load_study(study_name=name, storage=storage) for name in names]
        return [trial for study in studies for trial in study.get_trials()]
