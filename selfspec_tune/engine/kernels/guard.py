"""Runs a command that does not outlive its caller; a program of its own, in a process group of its own.

    python -I -S guard.py COMMAND…

Standard input is a pipe that the caller holds open. When that ends, however the caller ended, so
do the command and all that it has started. The exit code is the command's; `NOT_STARTED` where there is none.
Needs nothing but the standard library, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

NOT_STARTED = 126


def _end_with_caller() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


def run(command: list[str]) -> int:
    """The exit code of ``command``."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    try:
        return abs(subprocess.call(command, stdin=subprocess.DEVNULL))
    except OSError as error:
        print(error, file=sys.stderr)
        return NOT_STARTED


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
