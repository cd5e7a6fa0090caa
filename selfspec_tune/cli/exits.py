"""How a command ends: errors and signals become messages and exit codes, here alone.

The first is raised as `KeyboardInterrupt`, so that all of them keep what Ctrl-C keeps; a second ends at once.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, ParamSpec

import typer

from selfspec_tune.checks import visible, visible_line
from selfspec_tune.cli.fields import with_options
from selfspec_tune.errors import SelfSpecError, UsageError

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # as far as the system has them
_SHOW_CURSOR = b"\x1b[?25h"  # a live display hides it
INTERRUPTED = 128 + signal.SIGINT  # what a shell gives to a program that Ctrl-C ended
_received: list[int] = []
_LONGEST_SHOWN = 200
_WRONG_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
RESUMABLE = "interrupted; run the same command to resume"
P = ParamSpec("P")


def heed() -> None:
    """From now on these signals interrupt the program, but for those that its caller has it ignore."""
    if threading.current_thread() is not threading.main_thread():
        return  # which alone may say so
    for name in _NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def exit_code() -> int:
    """What a shell gives to a program that the signal ended: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def is_under_way() -> bool:
    """Whether a signal has come."""
    return bool(_received)


@contextmanager
def gently() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C only makes what is given true, for work that then ends itself; a second interrupts."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            _interrupt(number, frame)
        asked.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _received:
        with suppress(OSError):
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _received.append(number)
    raise KeyboardInterrupt


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
                stop(str(interrupt) or interrupted, exit_code())
            except Exception as error:
                if isinstance(error, OSError) and is_under_way():  # the terminal has gone
                    stop(interrupted, exit_code())
                _explain(error, is_debug=bool(kwargs.get("debug")))

        return run

    return wrap


def stop(message: str, exit_code: int) -> NoReturn:
    """Print ``message`` on standard error and end the command."""
    with suppress(OSError):  # there may be no terminal any more
        print(visible_line(with_options(message)), file=sys.stderr)
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
