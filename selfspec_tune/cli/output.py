"""Where output goes: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from selfspec_tune.checks import visible
from selfspec_tune.cli.fields import with_options
from selfspec_tune.errors import UsageError
from selfspec_tune.files import check_writable
from selfspec_tune.reporting import Reporter, SilentReporter


@contextmanager
def progress(*, quiet: bool) -> Iterator[Reporter]:
    """A reporter on standard error: live on a terminal, lines elsewhere, nothing if ``quiet``.

    Inside, whatever prints to standard output is sent to standard error, so that results
    alone reach it.
    """
    with redirect_stdout(sys.stderr), _reporter(quiet=quiet) as reporter:
        yield reporter


class SafeConsole(Console):
    """A console on which no text, wherever it is from, steers the terminal; what rich itself does is no text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class ReportConsole(SafeConsole):
    """A console for what the program itself says: fields that it names are written as options."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(with_options(segment.text), segment.style)


def result_console() -> Console:
    """The console that results are printed on."""
    return ReportConsole(highlight=False)


def say(line: str, *, to_errors: bool = False) -> None:
    """Print a line of text, in which others' names may be, on standard output as it is or on standard error."""
    print(visible(with_options(line) if to_errors else line), file=sys.stderr if to_errors else sys.stdout)


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output; what is written out in it reads back as it was."""
    say(json.dumps(value, ensure_ascii=False, allow_nan=False))


def prepare_outputs(*paths: Path | None) -> None:
    """Make the files' folders and try to write there now: a long measurement must not end with nowhere to put it.

    Raises `UsageError` where a path is a folder, `StorageError` where a file cannot be written.
    """
    for path in paths:
        if path is None:
            continue
        if os.path.isdir(path):  # pathlib raises where the name is too long
            raise UsageError(f"{path} is a folder; expected the name of a file to write.")
        check_writable(path)


def _reporter(*, quiet: bool) -> AbstractContextManager[Reporter]:
    if quiet:
        return nullcontext(SilentReporter())
    console = ReportConsole(file=sys.stderr, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        from selfspec_tune.report.progress import LiveReporter

        return LiveReporter(console)
    from selfspec_tune.report.progress import PlainReporter

    return nullcontext(PlainReporter(sys.stderr, spelled=with_options))
