"""Progress as plain lines, for logs, pipes and continuous integration."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from selfspec_tune.report import text
from selfspec_tune.reporting import Candidate, Progress
from selfspec_tune.terminal import visible_line

SECONDS_BETWEEN_LINES = 20.0


class PlainReporter:
    """Writes one line an event; within a stage at most one every 20 seconds.

    ``[calibrate] 16 prompts``, ``[trials] 3/40, 12:05 left``, ``note: …``.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._stage = "start"
        self._last_line = clock()

    def stage(self, name: str, detail: str = "") -> None:
        self._stage = name
        self._say(f"[{name}] {detail}".rstrip())

    def progress(self, progress: Progress) -> None:
        if self._clock() - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._say(f"[{self._stage}] {_progress_text(progress)}")

    def trial(self, candidate: Candidate) -> None:
        self._say(f"[{self._stage}] {_candidate_text(candidate)}")

    def best(self, candidate: Candidate) -> None:
        self._say(f"[best] {_candidate_text(candidate)}")

    def notice(self, message: str) -> None:
        self._say(f"note: {message}")

    def _say(self, line: str) -> None:
        self._last_line = self._clock()
        with suppress(OSError):
            print(visible_line(line), file=self._stream, flush=True)


def _progress_text(progress: Progress) -> str:
    count = str(progress.done) if progress.total is None else f"{progress.done}/{progress.total}"
    left = None if progress.seconds_left is None else f"{text.duration(progress.seconds_left)} left"
    return ", ".join(part for part in (count, left, progress.detail) if part)


def _candidate_text(candidate: Candidate) -> str:
    parts = [f"{text.origin_and_number(candidate)}: {text.candidate_speedup(candidate)}"]
    if candidate.acceptance_rate is not None:
        parts.append(f"acceptance {text.percent(candidate.acceptance_rate)}")
    return ", ".join([*parts, str(candidate.skip_set)])
