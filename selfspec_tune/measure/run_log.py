"""The log of a measurement: raw runs as they come, under a heading that says what is measured.

A JSON-lines file of four kinds of lines: one heading (``schema``, ``version``, ``measurement``,
``numeric_floors``), a line for each session that measured something (``started_session``,
``methods``, ``provenance``), the paired runs, each with the number of its session, and a line for
each rival that could not run (``left_out``, ``reason``, ``session``). Such a rival is tried again
in every session.

What defines the measurement must be the same whenever the log is used; methods may come
later, since every run carries the baseline of its own block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from selfspec_tune import __version__
from selfspec_tune.checks import number, whole
from selfspec_tune.engine import describe_numerics
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.files import append_jsonl, read_jsonl, short_hash, taken_apart
from selfspec_tune.measure.arms import Arm
from selfspec_tune.measure.contest import Contest
from selfspec_tune.measure.lossless import LosslessCheck
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.provenance import collect, cpu_model, package_version
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import BenchRequest
from selfspec_tune.results import PairedRun
from selfspec_tune.results.logs import WAYS_OUT, first_difference, heading_of, owned, put_aside
from selfspec_tune.results.record import check_provenance

_PACKAGES = ("torch", "transformers")
# What says where the prompts come from, not what they are: their hashes do, and those of their tokens.
_ORIGIN = ("source", "num_prompts", "tasks", "template_date")
SCHEMA, VERSION = "selfspec-tune/bench-log", 1


def measurement(
    workload: Workload,
    items: Mapping[str, Sequence[WorkItem]],
    request: BenchRequest,
    *,
    sweep: str | None = None,
) -> dict[str, Any]:
    """Everything that must be the same in every session of a bench; ``items`` by point of the sweep.

    The first entries are the ones a user would change on purpose: differences are named in this order.
    """
    loaded = workload.loaded
    options = {name: value for name, value in workload.options.to_dict().items() if name not in _ORIGIN}
    first = next(iter(items.values()))
    return {
        "sweep": sweep,
        "points": sorted(items),
        "model fingerprint": loaded.fingerprint,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "runner": workload.runner.name,
        "prompts": options,
        "prompt hashes": [item.prompt.hash for item in first],
        "prompt tokens": {point: _tokens_hash(of_point) for point, of_point in items.items()},
        "rounds": request.rounds,
        "reference prompts": min(request.reference_prompts, len(first)),
        "threads": torch.get_num_threads(),
        "machine": {
            "cpu": cpu_model(),
            "gpu": torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None,
        },
        "packages": {name: package_version(name) for name in _PACKAGES},
        "selfspec-tune": __version__,
    }


def methods_of(contests: Sequence[Contest]) -> dict[str, dict[str, Any]]:
    """What every arm is, by its id; in a sweep by its id and the value."""
    return {_name(contest, arm): _definition(arm) for contest in contests for arm in contest.arms}


def _tokens_hash(items: Sequence[WorkItem]) -> str:
    return short_hash("\n".join(" ".join(map(str, item.tokens)) for item in items))


def _name(contest: Contest, arm: Arm) -> str:
    return arm.id if contest.point is None else f"{arm.id} at {contest.point:g}"


def _definition(arm: Arm) -> dict[str, Any]:
    draft = None
    if arm.draft is not None:
        draft = {"skip set": str(arm.draft.skip_set), **arm.draft.to_dict()}
    defined = {"name": arm.name, "description": arm.description, "draft": draft}
    return defined if arm.model is None else defined | {"dtype": str(arm.model.dtype).removeprefix("torch.")}


class BenchLog:
    """One log, checked against the measurement that is asked for.

    Raises `FileFormatError` where the file is no log, `UsageError` where it holds another measurement.
    """

    def __init__(self, path: Path, measurement: Mapping[str, Any]) -> None:
        self.path = path
        self._measurement = dict(measurement)
        rows = read_jsonl(path)
        self._heading: dict[str, Any] | None = heading_of(rows, path, SCHEMA, VERSION)
        self._sessions = _sessions_of(rows, path)
        with taken_apart(path, WAYS_OUT):
            self._left_out = {str(row["left_out"]) for row in rows if "left_out" in row}
            for floor in (self._heading or {}).get("numeric_floors", {}).values():
                number("numeric_floors", floor, 0.0)
        if self._heading is not None:
            difference = first_difference(self._heading.get("measurement", {}), self._measurement)
            if difference:
                raise UsageError(f"{path} holds another measurement: {difference}. {WAYS_OUT}")

    @property
    def session(self) -> int:
        """The number of this session, should it measure anything."""
        return len(self._sessions) + 1

    def numeric_floor(self, point: str = "") -> float | None:
        """The floor that the first session found at this point; every run is judged by the same."""
        floors: dict[str, float] = (self._heading or {}).get("numeric_floors", {})
        return floors.get(point)

    def begin(self, contests: Sequence[Contest], provenance: Mapping[str, Any], reporter: Reporter) -> None:
        """Note this session, unless nothing is left to measure; says so, and from where it goes on.

        Raises `UsageError` where the log holds another method of the same id.
        """
        methods = methods_of(contests)
        known = {id_: method for session in self._sessions for id_, method in session["methods"].items()}
        self._check_methods(known, methods)
        total = sum(len(contest.sequence) for contest in contests)
        missing = [{arm.id for arm in arms} for contest in contests for _, arms in contest.missing(contest.logged())]
        pending = sum(bool(arms - self._left_out) for arms in missing)
        if not missing:
            reporter.notice(f"{self.path} is finished: nothing was measured now. `fresh` measures again.")
        elif not pending:
            again = ", ".join(sorted(set().union(*missing)))
            reporter.notice(f"{self.path} is finished but for {again}, which could not run and is tried again")
        elif self._sessions:
            reporter.notice(f"resuming {self.path}: {total - pending} of {total} blocks are there")
            self._tell_of_new(methods.keys() - known.keys(), reporter)
        if known.keys() - methods.keys():
            number = len(known.keys() - methods.keys())
            reporter.notice(f"{self.path} also holds {number} methods that were not asked for; they are left out")
        if missing:
            self._write(contests, methods, provenance)

    def provenance(self, runs: Sequence[PairedRun]) -> dict[str, Any]:
        """Of the last session that measured any of ``runs``, with all of them listed under ``sessions``.

        Raises `FileFormatError` where the log lists none of them.
        """
        sessions = [self._summary(session, runs) for session in self._sessions]
        took_part = [(session, about) for session, about in zip(self._sessions, sessions, strict=True) if about["runs"]]
        if not took_part:
            raise FileFormatError(f"{self.path} does not say in which session its runs were measured. {WAYS_OUT}")
        newest: dict[str, Any] = took_part[-1][0]["provenance"]
        return {**newest, "sessions": [about for _, about in took_part], "resumed": len(took_part) - 1}

    def _check_methods(self, known: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
        for method_id in known.keys() & methods.keys():
            difference = first_difference(known[method_id], methods[method_id])
            if difference:
                raise UsageError(f"{self.path} holds another method {method_id}: {difference}. {WAYS_OUT}")

    def _tell_of_new(self, new: Any, reporter: Reporter) -> None:
        if new:
            reporter.notice(f"{len(new)} methods are new to the log: measured now, each block beside its own baseline")

    def _write(self, contests: Sequence[Contest], methods: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        if self._heading is None:
            floors = {_point(contest): contest.check.floor for contest in contests}
            heading = {"schema": SCHEMA, "version": VERSION, "measurement": self._measurement}
            self._heading = heading | {"numeric_floors": floors}
            append_jsonl(self.path, self._heading)
        session = {"started_session": self.session, "methods": dict(methods), "provenance": dict(provenance)}
        append_jsonl(self.path, session)
        self._sessions.append(session)

    @staticmethod
    def _summary(session: Mapping[str, Any], runs: Sequence[PairedRun]) -> dict[str, Any]:
        number, provenance = session["started_session"], session["provenance"]
        return {
            "session": number,
            "started": provenance.get("created"),
            "commit": provenance.get("selfspec_tune", {}).get("commit"),
            "load_average": provenance.get("hardware", {}).get("load_average"),
            "clock_mhz": provenance.get("hardware", {}).get("clock_mhz"),
            "runs": sum(run.session == number for run in runs),
        }


def runner_of(path: Path | None) -> str | None:
    """The runner that the log at ``path`` was begun with; None where there is no log yet. Raises `FileFormatError`."""
    heading = None if path is None else heading_of(read_jsonl(path), path, SCHEMA, VERSION)
    return heading["measurement"].get("runner") if heading else None


def commits_of(path: Path | None) -> dict[str, str]:
    """The commit that the log at ``path`` was begun with, by the model's id on the hub; of a model elsewhere none.

    Raises `FileFormatError`.
    """
    if path is None:
        return {}
    with taken_apart(path, WAYS_OUT):
        sessions = [row for row in read_jsonl(path) if "started_session" in row]
        model = (sessions[0]["provenance"].get("model") or {}) if sessions else {}
        revision = model.get("revision")
        return {} if revision is None else {str(model["id"]): str(revision)}


def widened_of(path: Path | None) -> dict[str, bool]:
    """Of every method in the log at ``path``, by its id, whether it ran on the model's float32 copy."""
    if path is None:
        return {}
    with taken_apart(path, WAYS_OUT):
        sessions = [row for row in read_jsonl(path) if "started_session" in row]
        methods = [item for session in sessions for item in session["methods"].items()]
        return {id_.partition(" at ")[0]: "dtype" in method for id_, method in methods}


def _sessions_of(rows: Sequence[Any], path: Path) -> list[dict[str, Any]]:
    """The lines of sessions. Raises `FileFormatError` where one lacks what is read of it, or a line is no object."""
    with taken_apart(path, WAYS_OUT):
        sessions: list[dict[str, Any]] = [row for row in rows if "started_session" in row]
        for session in sessions:
            whole("started_session", session["started_session"], 1, len(sessions))
            provenance, methods = session["provenance"], session["methods"]
            check_provenance(provenance)
            load = provenance.get("hardware", {}).get("load_average")
            if load is not None:
                number("load_average", load, 0.0)
            for method in methods.values():
                method.items()
    return sessions


@contextmanager
def opened(
    path: Path | None, measurement: Mapping[str, Any], reporter: Reporter, *, fresh: bool = False
) -> Iterator[BenchLog | None]:
    """The log at ``path``, owned until the block ends; None where no log is asked for.

    ``fresh`` puts an existing log aside first. Raises `UsageError` where another bench is writing to it.
    """
    if path is None:
        yield None
        return
    with owned(path):
        if fresh and path.exists():
            aside = put_aside(path)
            reporter.notice(f"the earlier runs are kept in {aside}")
        yield BenchLog(path, measurement)


def _point(contest: Contest) -> str:
    return "" if contest.point is None else f"{contest.point:g}"


def measurement_provenance(workload: Workload, check: LosslessCheck | None, **extra: Any) -> dict[str, Any]:
    """Where a measurement comes from: program, machine, model, threads, prompts.

    ``check``: None before one is made. ``generation_config``: what the checkpoint asks for, which was not followed.
    """
    loaded = workload.loaded
    if loaded.generation_settings:
        extra = {"generation_config": loaded.generation_settings, **extra}
    return collect(
        model=loaded.describe(),
        dtype=str(loaded.dtype).removeprefix("torch."),
        device=str(loaded.device),
        gpu=torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None,
        threads=torch.get_num_threads(),
        seed=workload.options.seed,
        runner=workload.runner.name,
        numerics=describe_numerics(),
        numeric_floor=None if check is None else check.floor,
        **extra,
    )
