"""The log of a bench in another runtime: answers as they come, under a heading that says what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.files import append_jsonl, read_jsonl
from selfspec_tune.results import RuntimeRun
from selfspec_tune.run_logs import first_difference, put_aside

_SCHEMA = "selfspec-tune/runtime-bench-log"


class RuntimeLog:
    """What was measured so far; in memory alone without a ``path``.

    ``fresh`` puts an earlier log aside. Raises `FileFormatError` where the file is no such log, `UsageError` where it
    holds another measurement.
    """

    def __init__(self, path: Path | None, measurement: Mapping[str, Any], *, fresh: bool = False) -> None:
        self._path = path
        self._heading = {"schema": _SCHEMA, "version": 1, "measurement": dict(measurement)}
        self.runs: list[RuntimeRun] = []
        if path is None or not path.exists():
            return
        if fresh:
            put_aside(path)
            return
        heading, *rows = read_jsonl(path) or [{}]
        if not isinstance(heading, dict) or heading.get("schema") != _SCHEMA:
            raise FileFormatError(f"{path} is no log of a bench in another runtime. Give another --out.")
        difference = first_difference(heading["measurement"], measurement)
        if difference:
            raise UsageError(
                f"{path} holds another measurement: {difference}. Give the same options to resume it, --fresh to "
                "measure again (the old answers are kept), or another --out."
            )
        self.runs = [RuntimeRun.model_validate(row) for row in rows]

    def add(self, run: RuntimeRun) -> None:
        """Keep one answer. Raises `StorageError`."""
        self.runs.append(run)
        if self._path is not None:
            is_new = not self._path.exists()
            append_jsonl(self._path, *([self._heading] if is_new else []), run.to_dict())
