from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfspec_tune.cli import app, output
from selfspec_tune.report.progress import LiveReporter, PlainReporter
from selfspec_tune.reporting import SilentReporter
from tests import kit
from tests.search_kit import prompt_file


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with output.progress(quiet=False) as reporter:
        assert isinstance(reporter, LiveReporter)


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with output.progress(quiet=False) as reporter:
        assert isinstance(reporter, PlainReporter)


def test_quiet_gets_nothing() -> None:
    with output.progress(quiet=True) as reporter:
        assert isinstance(reporter, SilentReporter)


def test_the_entry_point_survives_a_terminal_without_block_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="latin-1"))
    monkeypatch.setattr(sys, "argv", ["selfspec-tune", "models"])
    monkeypatch.setattr(app.exits, "heed", lambda: None)  # signals are pytest's here
    with pytest.raises(SystemExit) as ended:
        app.main()
    sys.stdout.flush()
    assert ended.value.code == 0
    assert b"llama-2-13b" in buffer.getvalue()


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="no device here is always full")
@pytest.mark.parametrize(("arguments", "is_buffered"), [(["models", "--json"], True), (["--version"], False)])
def test_a_full_standard_output_is_named(arguments: list[str], is_buffered: bool) -> None:
    command = [sys.executable, *["-u"] * (not is_buffered), "-m", "selfspec_tune", *arguments]
    with FULL.open("wb") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == (
        "error: Standard output cannot be written: No space left on device. Make room, or send it elsewhere.\n"
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_stream_takes_what_is_its_own_and_the_other_does_not(closed: str) -> None:
    shell = f"'{sys.executable}' -m selfspec_tune models {closed}"
    ran = subprocess.run(shell, shell=True, capture_output=True, check=False)
    assert (ran.returncode, ran.stderr, bool(ran.stdout)) == (0, b"", closed == "2>&-")


def test_a_pipe_that_nobody_reads_ends_a_command_quietly() -> None:
    shell = f"'{sys.executable}' -m selfspec_tune models --json | true"
    assert subprocess.run(shell, shell=True, capture_output=True, check=False).stderr == b""


def test_no_other_librarys_bars_stand_between_our_lines(tiny_llama_dir: Path, tmp_path: Path) -> None:
    file = kit.tiny_gguf(tiny_llama_dir, tmp_path / "tiny.gguf")
    rows = prompt_file(tmp_path / "set.jsonl", 8)
    command = ["search", "--model", str(file), "--prompts", rows, "--max-new-tokens", "16", "--template", "raw"]
    ran = subprocess.run(
        [sys.executable, "-m", "selfspec_tune", *command, "--trials", "1", "--dry-run"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.replace("\r", "\n").splitlines()
    assert [line for line in lines if line.strip() and not line.startswith(("[", "note: "))] == []
