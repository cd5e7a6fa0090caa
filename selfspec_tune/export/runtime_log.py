"""The log of a bench in another runtime: answers as they come, under a heading that says what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.files import append_jsonl, first_problem, read_jsonl
from selfspec_tune.results import RuntimeRun
from selfspec_tune.run_logs import WAYS_OUT, first_difference, heading_of, owned, put_aside

_SCHEMA, _VERSION = "selfspec-tune/runtime-bench-log", 1


class RuntimeLog:
    """What was measured so far; in memory alone without a ``path``.

    Raises `FileFormatError` where the file is no such log, `UsageError` where it holds another measurement.
    """

    def __init__(self, path: Path | None, measurement: Mapping[str, Any]) -> None:
        self._path = path
        self._heading = {"schema": _SCHEMA, "version": _VERSION, "measurement": dict(measurement)}
        self._has_heading = False
        self.runs: list[RuntimeRun] = []
        rows = read_jsonl(path) if path is not None else []
        if path is None or (heading := heading_of(rows, path, _SCHEMA, _VERSION)) is None:
            return
        self._has_heading = True
        if difference := first_difference(heading["measurement"], measurement):
            raise UsageError(f"{path} holds another measurement: {difference}. {WAYS_OUT}")
        for number, row in enumerate(rows[1:], 2):
            try:
                self.runs.append(RuntimeRun.model_validate(row, strict=True))
            except ValidationError as error:
                problem = first_problem(error)
                raise FileFormatError(
                    f"{path}, line {number} is no answer of a bench: {problem}. {WAYS_OUT}"
                ) from error

    def add(self, run: RuntimeRun) -> None:
        """Keep one answer. Raises `StorageError`."""
        self.runs.append(run)
        if self._path is not None:
            append_jsonl(self._path, *([] if self._has_heading else [self._heading]), run.to_dict())
            self._has_heading = True


@contextmanager
def opened(path: Path | None, measurement: Mapping[str, Any], *, fresh: bool = False) -> Iterator[RuntimeLog]:
    """The log at ``path``, owned until the block ends; ``fresh`` puts an earlier one aside."""
    if path is None:
        yield RuntimeLog(None, measurement)
        return
    with owned(path):
        if fresh and path.exists():
            put_aside(path)
        yield RuntimeLog(path, measurement)
