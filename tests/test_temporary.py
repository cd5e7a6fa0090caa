"""What killed processes leave is swept; what living ones hold, and what is not ours, stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfspec_tune import files, temporary
from selfspec_tune.temporary import TemporaryFolder, sweep

_HOLDS = """
import sys
from pathlib import Path
from selfspec_tune.temporary import TemporaryFolder
folder = TemporaryFolder("ours-", parent=Path(sys.argv[1]))
(folder.path / "large").write_text("x")
print("ready", flush=True)
sys.stdin.read()
"""
_WRITES = """
import os, sys
from selfspec_tune.files import write_atomic
def fsync(descriptor):
    print("ready", flush=True)
    sys.stdin.read()
os.fsync = fsync
write_atomic(sys.argv[1], "new")
"""


@contextmanager
def running(code: str, argument: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has come to where it says that it is ready."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, str(argument)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        if process.poll() is None:
            process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_of_a_living_process_stays_and_a_dead_ones_is_swept(tmp_path: Path) -> None:
    with running(_HOLDS, tmp_path) as process:
        held = names(tmp_path)
        sweep(tmp_path, "ours-")
        assert names(tmp_path) == held
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(tmp_path) == held
    with TemporaryFolder("ours-", parent=tmp_path) as folder:
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_a_process_that_ends_by_itself_leaves_no_folder(tmp_path: Path) -> None:
    with running(_HOLDS, tmp_path):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []


def test_what_a_killed_write_left_goes_with_the_next_write_of_that_file(tmp_path: Path) -> None:
    path = tmp_path / "skip.json"
    path.write_text("old")
    with running(_WRITES, path) as process:
        files.write_atomic(path, "of another process")  # which leaves the living one's alone
        assert len(names(tmp_path)) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(names(tmp_path)) == 2
    files.write_atomic(path, "newest")
    assert (names(tmp_path), path.read_text()) == (["skip.json"], "newest")


def test_only_names_of_ours_are_swept(tmp_path: Path) -> None:
    kept = (".skip.json.tmp", ".skip.json.0123abcd", ".skip.json.0123abcg.tmp", ".other.json.0123abcd.tmp", "notes.md")
    for name in (*kept, ".skip.json.0123abcd.tmp"):
        (tmp_path / name).write_text("x")
    files.write_atomic(tmp_path / "skip.json", "new")
    assert names(tmp_path) == sorted((*kept, "skip.json"))


def test_a_link_of_such_a_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    (tmp_path / "ours-0123abcd").symlink_to("mine")
    sweep(tmp_path, "ours-")
    assert names(tmp_path) == ["mine", "ours-0123abcd"]
    assert names(tmp_path / "mine") == ["file"]


def test_what_belongs_to_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours-0123abcd").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    sweep(tmp_path, "ours-")
    assert names(tmp_path) == ["ours-0123abcd"]


def test_where_locks_cannot_be_had_nothing_is_swept_and_writing_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(temporary.fcntl, "flock", flock)
    (tmp_path / ".a.0123abcd.tmp").write_text("half")
    files.write_atomic(tmp_path / "a", "whole")
    with TemporaryFolder("ours-", parent=tmp_path) as folder:
        assert folder.is_dir()
    assert names(tmp_path) == [".a.0123abcd.tmp", "a"]


def test_a_name_in_a_folder_that_is_not_there_is_nothing_to_sweep(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere", "ours-")
