"""The folder of a study: what it holds, who may write to it, and how a search resumes in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from selfspec_tune.errors import UsageError
from selfspec_tune.files import read_json, read_jsonl, storage_error, write_json_atomic
from selfspec_tune.requests import SearchRequest
from selfspec_tune.results import SkipConfig, StudyConfig

# What may change between a search and its resumption without changing what it measures.
_BUDGET_FIELDS = {"trials", "timeout_seconds"}
# What older studies do not state: these were resumed with whatever was there.
_LATER_FIELDS = {"model_revision", "template_date"}
_OF_SEVERAL = ("compare.json", "transfer.json")


class StudyFolder:
    """Names of a study's files; every one is written atomically or appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "study.toml"
        self.schedule = path / "schedule.json"
        self.calibration = path / "calibration.json"
        self.preparation = path / "preparation.json"
        self.proxy = path / "proxy.jsonl"
        self.ranking = path / "ranking.json"
        self.trajectory = path / "trajectory.jsonl"
        self.trials = path / "trials.jsonl"
        self.choice = path / "choice.json"
        self.selection = path / "selection.jsonl"
        self.test = path / "test.jsonl"
        self.skip = path / "skip.json"
        self.bench = path / "bench.json"
        self._state = path / "state.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Own the study: a second search in the same folder is refused. Freed by the system on any exit."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.path / "study.lock"))
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"{self.path} is in use by another search. Wait for it, or give another --out.") from None
        except OSError as error:
            raise storage_error(self.path, error) from error
        try:
            yield
        finally:
            lock.release()

    def check_is_no_search(self) -> None:
        """Raise `UsageError` where a single search lies: what several leave would overwrite its files."""
        if self.config.exists():
            raise UsageError(f"{self.path} holds a single search. Give another --out.")

    def settle(self, config: StudyConfig) -> None:
        """Write the configuration, or check that a resumed search asks for the same.

        Raises `UsageError` where it does not, or where the results of several searches lie.
        """
        if not self.config.exists() and any((self.path / name).exists() for name in _OF_SEVERAL):
            raise UsageError(f"{self.path} holds the results of several searches. Give another --out.")
        if self.config.exists():
            differences = {
                name: values
                for name, values in StudyConfig.load(self.config).differences(config).items()
                if name not in _BUDGET_FIELDS and not (name in _LATER_FIELDS and values[0] is None)
            }
            if differences:
                changed = ", ".join(f"{name} {old} → {new}" for name, (old, new) in differences.items())
                raise UsageError(
                    f"{self.path} holds a search with another configuration ({changed}). "
                    "Use the same options to resume it, or give another --out."
                )
        config.save(self.config)

    @property
    def begun(self) -> StudyConfig | None:
        """What the study was begun with; None where there is no study yet."""
        return StudyConfig.load(self.config) if self.config.exists() else None

    @property
    def spent_seconds(self) -> float:
        """Time that earlier runs of this search took."""
        return float(self._read_state().get("spent_seconds", 0.0))

    def note_time(self, seconds: float) -> None:
        """Remember the time spent so far."""
        write_json_atomic(self._state, {**self._read_state(), "spent_seconds": round(seconds, 1)})

    def is_finished(self, request: SearchRequest) -> bool:
        """Whether a search with this budget has run to its end here."""
        finished = self._read_state().get("finished")
        return finished == budget_of(request) and self.skip.exists() and self.bench.exists()

    def note_finished(self, request: SearchRequest | None) -> None:
        """Remember that a search with this budget has run to its end; None: that one is under way."""
        finished = budget_of(request) if request else None
        write_json_atomic(self._state, {**self._read_state(), "finished": finished})

    def has_scored_skip_set(self) -> bool:
        """Whether skip.json holds a set that was measured on the test split."""
        return self.skip.exists() and not SkipConfig.load(self.skip).provenance.get("interrupted", False)

    def num_tested(self, prefix: str) -> int:
        """How many methods whose id begins with ``prefix`` were measured on the test split, ever."""
        return len({row["method"] for row in read_jsonl(self.test) if row["method"].startswith(f"{prefix}:")})

    def _read_state(self) -> dict[str, Any]:
        state: dict[str, Any] = read_json(self._state) if self._state.exists() else {}
        return state


def budget_of(request: SearchRequest) -> dict[str, Any]:
    """What may grow from one run of a search to the next, as plain JSON values."""
    return {"trials": request.trials, "timeout_seconds": request.timeout_seconds}
