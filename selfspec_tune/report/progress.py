"""Progress: plain lines for logs and pipes, or a display that redraws itself for terminals of 60 columns and more.

It redraws on events only, never from a thread of its own: events come between the timed
runs, so the display takes no time from what is being measured.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from selfspec_tune.checks import visible_line
from selfspec_tune.report import text
from selfspec_tune.reporting import Candidate, Progress

SECONDS_BETWEEN_LINES = 20.0
NUM_RECENT_TRIALS = 4
_SECONDS_BETWEEN_REDRAWS = 0.1
_BAR_WIDTH = 24


class PlainReporter:
    """Writes one line an event; within a stage at most one every 20 seconds.

    ``[calibrate] 16 prompts``, ``[trials] 3/40, 12:05 left``, ``note: …``.
    """

    def __init__(
        self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic, spelled: Callable[[str], str] = str
    ) -> None:
        """``spelled``: how a line that names fields is written."""
        self._stream = stream
        self._spelled = spelled
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
            print(visible_line(self._spelled(line)), file=self._stream, flush=True)


def _progress_text(progress: Progress) -> str:
    count = str(progress.done) if progress.total is None else f"{progress.done}/{progress.total}"
    left = None if progress.seconds_left is None else f"{text.duration(progress.seconds_left)} left"
    return ", ".join(part for part in (count, left, progress.detail) if part)


def _candidate_text(candidate: Candidate) -> str:
    parts = [f"{text.origin_and_number(candidate)}: {text.candidate_speedup(candidate)}"]
    if candidate.acceptance_rate is not None:
        parts.append(f"acceptance {text.percent(candidate.acceptance_rate)}")
    return ", ".join([*parts, candidate.draft.reductions])


class LiveReporter:
    """Stage and bar, the best so far with its layer map, the last trials, the time left.

    A context manager: on leaving, by whatever way, the terminal is as it was. Finished
    stages and notices stay on the screen as ordinary lines.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._stage = ""
        self._detail = ""
        self._stage_start = clock()
        self._progress = Progress(0)
        self._deadline: float | None = None
        self._best: Candidate | None = None
        self._recent: deque[Candidate] = deque(maxlen=NUM_RECENT_TRIALS)
        self._last_redraw = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, get_renderable=self._render)

    def __enter__(self) -> LiveReporter:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if kind is None:
            self._print_finished_stage()

    def stage(self, name: str, detail: str = "") -> None:
        self._print_finished_stage()
        self._stage, self._detail = name, visible_line(detail)
        self._stage_start = self._clock()
        self._progress, self._deadline = Progress(0), None
        self._redraw()

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        if progress.seconds_left is not None:
            self._deadline = self._clock() + progress.seconds_left
        if self._clock() - self._last_redraw >= _SECONDS_BETWEEN_REDRAWS:
            self._redraw()

    def trial(self, candidate: Candidate) -> None:
        self._recent.append(candidate)
        self._redraw()

    def best(self, candidate: Candidate) -> None:
        self._best = candidate
        self._redraw()

    def notice(self, message: str) -> None:
        self._console.print(Text("note: ", style="yellow").append(visible_line(message), style="default"))

    def _redraw(self) -> None:
        self._last_redraw = self._clock()
        self._live.refresh()

    def _print_finished_stage(self) -> None:
        if self._stage:
            elapsed = text.duration(self._clock() - self._stage_start)
            line = Text.assemble(("✓ ", "green"), self._stage, (f"  {self._detail}", "dim"), f"  {elapsed}")
            self._console.print(line)

    def _render(self) -> RenderableType:
        if not self._stage:
            return Text("")
        parts: list[RenderableType] = [self._head(), self._bar()]
        if self._best is not None:
            parts += _best_lines(self._best, self._console.width)
        if self._recent:
            parts.append(_recent_table(self._recent))
        return Group(*parts)

    def _head(self) -> RenderableType:
        return _line(Text.assemble((self._stage, "bold cyan"), (f"  {self._detail}", "dim")))

    def _bar(self) -> RenderableType:
        done, total = self._progress.done, self._progress.total
        grid = Table.grid(padding=(0, 2, 0, 0))
        cells: list[RenderableType] = []
        if total is not None:
            cells.append(ProgressBar(total=max(total, 1), completed=done, width=_BAR_WIDTH))
        if total is not None or done:
            cells.append(_line(Text(str(done) if total is None else f"{done}/{total}")))
        if self._deadline is not None:
            cells.append(_line(Text(f"{text.duration(self._deadline - self._clock())} left")))
        if self._progress.detail:
            cells.append(_line(Text(self._progress.detail, style="dim")))
        grid.add_row(*cells)
        return grid


def _line(content: Text) -> Text:
    """``content`` on a single line, cut with an ellipsis where the terminal is narrow."""
    content.no_wrap = True
    content.overflow = "ellipsis"
    return content


def _best_lines(best: Candidate, width: int) -> list[RenderableType]:
    head = Text.assemble(
        ("best ", "bold"), (text.candidate_speedup(best), "bold green"), f"  {text.origin_and_number(best)}"
    )
    if best.acceptance_rate is not None:
        head.append(f"  acceptance {text.percent(best.acceptance_rate)}")
    rows = [Text(row) for row in text.layer_map_rows(best.draft.skip_set, width)]
    coarser = [_line(Text(", ".join(best.draft.coarser)))] if best.draft.coarser else []
    return [_line(head), *rows, *coarser]


def _recent_table(recent: deque[Candidate]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
    for candidate in recent:
        style = "dim" if candidate.stopped_early else ""
        table.add_row(
            Text(text.origin_and_number(candidate), style=style),
            Text(text.candidate_speedup(candidate), style=style),
            candidate.draft.reductions,
        )
    return table
