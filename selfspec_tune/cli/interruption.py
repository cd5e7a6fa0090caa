"""Signals that ask the program to end: Ctrl-C, what batch systems send, and a terminal that goes away.

The first is raised as `KeyboardInterrupt`, so that all of them keep what Ctrl-C keeps; a second ends at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # as far as the system has them
_SHOW_CURSOR = b"\x1b[?25h"  # a live display hides it

INTERRUPTED = 128 + signal.SIGINT  # what a shell gives to a program that Ctrl-C ended

_received: list[int] = []


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
