"""Whatever signal asks the program to end, it ends as after Ctrl-C: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS = 240  # a guard against hanging, on a slow and busy machine
_EDGE = """
import signal, sys, time, typer
from selfspec_tune.cli import exits
from selfspec_tune.cli.exits import at_edge

def wait(said):
    print(said, flush=True)
    time.sleep(300)

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_IGN if "ignored" in sys.argv else signal.SIG_DFL)
exits.heed()

@at_edge(interrupted="interrupted; run it again")
def command():
"""
WAITS = f"""{_EDGE}
    wait("ready")

del sys.argv[1:]
typer.run(command)
"""
CLEANS_UP_FOR_LONG = f"""{_EDGE}
    try:
        wait("ready")
    except KeyboardInterrupt:
        wait("heard")

typer.run(command)
"""
LOSES_ITS_TERMINAL = f"""{_EDGE}
    try:
        wait("ready")
    except KeyboardInterrupt:
        raise OSError(5, "Input/output error") from None

typer.run(command)
"""
# An export that is about to put the draft in its place.
EXPORTS = """
import sys, time
from selfspec_tune.cli import app
from selfspec_tune.export import write

def put(temporary, out):
    print("ready", flush=True)
    time.sleep(300)

write.put = put
app.main()
"""


@contextmanager
def running(code: str, *arguments: str, folder: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has said that it is ready; killed at the end where it still runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if folder is not None:
        (folder / "tmp").mkdir(exist_ok=True)
        environment["TMPDIR"] = str(folder / "tmp")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **pipes) as process:
        try:
            hears(process, "ready")
            yield process
        finally:
            process.kill()


def hears(process: subprocess.Popen[str], said: str) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"{said}\n", process.communicate()[1]


def end(process: subprocess.Popen[str], how: signal.Signals) -> tuple[int, str]:
    """Exit code and standard error after a signal."""
    process.send_signal(how)
    said = process.communicate(timeout=SECONDS)[1]
    return process.returncode, said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_to_end_says_what_ctrl_c_says(how: signal.Signals) -> None:
    with running(WAITS) as process:
        assert end(process, how) == (128 + how, "interrupted; run it again\n")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with running(CLEANS_UP_FOR_LONG) as process:
        process.send_signal(first)
        hears(process, "heard")
        assert end(process, second) == (-second, "")


def test_a_signal_that_the_caller_has_ignored_stays_ignored() -> None:
    """As ``nohup`` does with SIGHUP."""
    with running(WAITS, "ignored") as process:
        process.send_signal(signal.SIGHUP)
        assert end(process, signal.SIGTERM)[0] == 128 + signal.SIGTERM


def test_a_terminal_that_has_gone_is_no_error_of_its_own() -> None:
    with running(LOSES_ITS_TERMINAL) as process:
        assert end(process, signal.SIGHUP) == (128 + signal.SIGHUP, "interrupted; run it again\n")


def test_a_terminated_export_leaves_nothing_and_a_killed_one_is_swept(tmp_path: Path, tiny_llama_dir: Path) -> None:
    skips, out = tmp_path / "skips.json", tmp_path / "out"
    skips.write_text('{"attention": [1], "mlp": [2]}')
    asked = ("export", str(skips), "--to", "hf-zero", "--model", str(tiny_llama_dir), "--out", str(out))
    before = {"skips.json", "tmp"}
    with running(EXPORTS, *asked, folder=tmp_path) as process:
        assert len(left(tmp_path) - before) == 1
        assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert len(left(tmp_path) - before) == 1
    with running(EXPORTS, *asked, folder=tmp_path) as process:
        assert len(left(tmp_path) - before) == 1  # its own
        assert end(process, signal.SIGTERM) == (128 + signal.SIGTERM, "interrupted\n")
    assert left(tmp_path) == before


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("pymp-")}
