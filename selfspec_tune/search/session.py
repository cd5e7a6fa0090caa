"""One run of a search's command: what its stages share, and when and where it measured.

A search that goes on under other conditions says so, and its results list every session that they rest on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfspec_tune.draft import Draft
from selfspec_tune.errors import FileFormatError
from selfspec_tune.files import append_jsonl, read_jsonl
from selfspec_tune.measure.workload import Workload
from selfspec_tune.provenance import load_average
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import SearchRequest
from selfspec_tune.results import PairedRun
from selfspec_tune.results.logs import first_difference
from selfspec_tune.search.budget import Clock, Schedule
from selfspec_tune.search.estimates import Estimates
from selfspec_tune.search.setup import SearchSetup
from selfspec_tune.search.strategies import Strategy, strategy_for
from selfspec_tune.search.study import StudyFolder
from selfspec_tune.search.study_files import Incumbent, Trajectory

_MACHINE = ("cpu", "gpu", "cores", "threads")
_PACKAGES = ("torch", "transformers")
_OF_MODEL = ("model", "dtype", "device", "seed", "runner")  # checked when a search is resumed
_OLD = 1  # what was measured before searches kept their sessions counts as the first


class Sessions:
    """Those in ``file``; this process's is `number` once it has begun. Raises `FileFormatError`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._provenances: list[dict[str, Any]] = [_provenance(row, file) for row in read_jsonl(file)]

    @property
    def number(self) -> int:
        """Of the newest session, from 1."""
        return len(self._provenances)

    def begin(self, provenance: Mapping[str, Any], earlier: Iterable[Mapping[str, Any]], reporter: Reporter) -> None:
        """Note this session; says what is otherwise than where the search measured before.

        ``earlier``: the sessions of a search that kept none, as far as anything is known of them.
        """
        for known in earlier:
            self._add({name: provenance.get(name) for name in _OF_MODEL} | dict(known))
        before = [place_of(known) for known in self._provenances]
        self._add(provenance)
        for line in _told(before, place_of(provenance)):
            reporter.notice(line)

    def provenance(self, trials: Iterable[int | None], runs: Sequence[PairedRun] = ()) -> dict[str, Any]:
        """Of the newest session that measured any of ``runs``, else of this one, and all of them under ``sessions``.

        ``trials``: the session of each trial.
        """
        by_trials = Counter(number or _OLD for number in trials)
        by_runs = Counter(run.session or _OLD for run in runs)
        newest = self._provenances[min(max(by_runs, default=self.number), self.number) - 1]
        sessions = [
            _summary(number, about) | {"trials": by_trials[number], "runs": by_runs[number]}
            for number, about in enumerate(self._provenances, start=1)
        ]
        sessions[-1]["load_average"] = load_average()  # with all that has come to run beside it
        return {**newest, "sessions": sessions, "resumed": len(sessions) - 1}

    def _add(self, provenance: Mapping[str, Any]) -> None:
        append_jsonl(self._file, {"session": self.number + 1, "provenance": dict(provenance)})
        self._provenances.append(dict(provenance))


def place_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What timings depend on besides the study's configuration, as far as it is known."""
    hardware, packages = provenance.get("hardware") or {}, provenance.get("packages") or {}
    program = provenance.get("selfspec_tune") or {}
    found = {name: hardware[name] for name in _MACHINE if name in hardware}
    found |= {"CPU quota": provenance["cpu_quota"]} if "cpu_quota" in provenance else {}
    found |= {name: packages[name] for name in _PACKAGES if name in packages}
    return found | ({"selfspec-tune": program["version"]} if "version" in program else {})


def _told(before: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> list[str]:
    """A line where this session's place is another than an earlier one's, or where that is unknown."""
    if any(not place for place in before):
        return ["nothing says where this search has measured: that it was here cannot be checked"]
    changes: dict[str, None] = {}
    for place in before:
        for name in place:
            difference = first_difference({name: place[name]}, {name: now.get(name)})
            if difference:
                changes[difference] = None
    if not changes:
        return []
    return [
        f"this search has measured under other conditions: {', '.join(changes)}. Its step costs and trials are kept, "
        "though ratios depend on these; a new `out` measures all of it here. The results list every session."
    ]


def _summary(number: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    hardware, program = provenance.get("hardware") or {}, provenance.get("selfspec_tune") or {}
    return {
        "session": number,
        "started": provenance.get("created"),
        **place_of(provenance),
        "commit": program.get("commit"),
        "load_average": hardware.get("load_average"),
        "clock_mhz": hardware.get("clock_mhz"),
    }


def _provenance(row: Any, file: Path) -> dict[str, Any]:
    found = row.get("provenance") if isinstance(row, dict) else None
    if not isinstance(found, dict):
        raise FileFormatError(f"{file} holds a line that is no session of a search. Restore it, or give another `out`.")
    return found


@dataclass(frozen=True, slots=True)
class Session:
    """A setting, how much of it is for which stage, where what is found is kept, how long it has taken, who is told."""

    setting: SearchSetup
    schedule: Schedule
    estimates: Estimates
    folder: StudyFolder
    sessions: Sessions
    clock: Clock
    reporter: Reporter

    @property
    def request(self) -> SearchRequest:
        """What was asked for."""
        return self.setting.request

    @property
    def workload(self) -> Workload:
        """The open model with its runner."""
        return self.setting.workload

    @property
    def strategy(self) -> Strategy:
        """How candidates come and are scored."""
        return strategy_for(self.request.strategy)

    @property
    def predicts(self) -> bool:
        """Whether candidates are predicted before any is measured."""
        return self.schedule.num_texts > 0

    @property
    def seed(self) -> int:
        """Of every draw."""
        return self.request.prompts.seed

    def note(self, best: Draft, score: float, stage: str) -> None:
        """Keep a new best of the search."""
        Trajectory(self.folder.trajectory).note(Incumbent(self.clock.elapsed, best, score, stage))

    def tick(self) -> None:
        """Keep the time spent so far."""
        self.folder.note_time(self.clock.elapsed)
