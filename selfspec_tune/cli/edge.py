"""The command line's edge: the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import functools
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, ParamSpec

import typer

from selfspec_tune.cli import interruption
from selfspec_tune.errors import SelfSpecError, UsageError
from selfspec_tune.terminal import visible, visible_line

_LONGEST_SHOWN = 200
_WRONG_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
RESUMABLE = "interrupted; run the same command to resume"

P = ParamSpec("P")


def at_edge(*, interrupted: str = "interrupted") -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Wraps a command: what it raises ends as one message on standard error and an exit code.

    `SelfSpecError` exits with its own code, Ctrl-C with 130 (SIGTERM with 143) and what it says itself or else
    the words ``interrupted``, anything unexpected with 1. A command's ``debug`` argument adds the traceback.
    """

    def wrap(command: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(command)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                command(*args, **kwargs)
            except (typer.Exit, typer.Abort, BrokenPipeError):
                raise
            except KeyboardInterrupt as interrupt:
                stop(str(interrupt) or interrupted, interruption.exit_code())
            except Exception as error:
                if isinstance(error, OSError) and interruption.is_under_way():  # the terminal has gone
                    stop(interrupted, interruption.exit_code())
                _explain(error, is_debug=bool(kwargs.get("debug")))

        return run

    return wrap


def stop(message: str, exit_code: int) -> NoReturn:
    """Print ``message`` on standard error and end the command."""
    with suppress(OSError):  # there may be no terminal any more
        print(visible_line(message), file=sys.stderr)
    raise typer.Exit(exit_code) from None


def _explain(error: Exception, *, is_debug: bool) -> NoReturn:
    if is_debug:
        print(visible("".join(traceback.format_exception(error))), file=sys.stderr)
    if isinstance(error, SelfSpecError):
        stop(f"error: {error}", error.exit_code)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        is_name = error.errno in _WRONG_NAMES
        hint = "Give another path." if is_name else "Check the path, and what you may do there."
        message = f"error: {_shortened(str(error.filename))}: {error.strerror}. {hint}"
        stop(message, UsageError.exit_code if is_name else SelfSpecError.exit_code)
    first_line = (str(error).strip().splitlines() or [""])[0]
    hint = "" if is_debug else " (run with --debug to see where)"
    stop(f"error: {type(error).__name__}: {first_line}{hint}", 1)


def _shortened(path: str) -> str:
    return path if len(path) <= _LONGEST_SHOWN else f"{path[: _LONGEST_SHOWN // 2]}… ({len(path)} characters)"
