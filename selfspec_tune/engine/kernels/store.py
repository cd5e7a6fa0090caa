"""The store of compiled libraries: what lies there that may be loaded, and the verdict that each was given.

A library is code that this process runs. So only files count that are ours, that no one
else can write to, and that are what the verdict beside them was given on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from selfspec_tune.cpu import Level, cpu_quota, most_threads
from selfspec_tune.engine.kernels.compilers import Compiler
from selfspec_tune.errors import NativeUnavailableError, StorageError
from selfspec_tune.files import write_atomic
from selfspec_tune.models.default_model import CACHE_VARIABLE, cache_directory
from selfspec_tune.provenance import num_cores
from selfspec_tune.temporary import TemporaryFolder

LEAST_SHARE = 0.4  # of a plain read: compilers that keep vectors out of registers reach half of it
_CHECK = Path(__file__).with_name("check.py")
_CHECK_SECONDS = 180
_BUILD = "build-"  # what folders of unfinished builds begin with
_LOCK_SECONDS = 900
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ELSEWHERE = f"; set {CACHE_VARIABLE} to a folder of your own"


class LibraryVerdict(BaseModel):
    """What was made by whom, how fast it is (bytes per second), and the file's size and hash.

    ``passed_over`` says what was wrong with other compilers, and ``found`` names all that were here.
    """

    model_config = ConfigDict(frozen=True)

    level: str
    compiler: str
    speed: float
    read_speed: float
    size: int
    sha256: str
    made: str
    passed_over: tuple[str, ...] = ()
    found: tuple[tuple[str, ...], ...] = ()

    @property
    def share(self) -> float:
        """The speed of a bfloat16 weight times one token, of a plain read's."""
        return self.speed / self.read_speed if self.read_speed > 0 else 0.0

    @property
    def percent(self) -> str:
        """The share for a person."""
        return f"{100 * self.share:.0f} %"

    @property
    def is_slow(self) -> bool:
        return self.share < LEAST_SHARE

    @classmethod
    def read(cls, path: Path) -> LibraryVerdict | None:
        """The verdict in a file; None where that is no verdict, or cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def fits(self, library: Path) -> bool:
        """Whether a file is, byte for byte, the one that was judged."""
        try:
            content = library.read_bytes()
        except OSError:
            return False
        return (len(content), sha256(content).hexdigest()) == (self.size, self.sha256)


def judge(library: Path, compiler: Compiler, level: Level, abi: list[int]) -> LibraryVerdict:
    """Run the library's own test in another process.

    ``abi`` is the version and the sizes of structures that Python expects.
    Raises `NativeUnavailableError` where the library is wrong, with what is.
    """
    found = _checked(library)
    if found["level"] != level.name:
        raise NativeUnavailableError(f"made kernels for {found['level']}, not {level.name}")
    if found["abi"] != abi:
        raise NativeUnavailableError(f"made kernels of another interface ({found['abi']}, not {abi})")
    if found["failed"]:
        threads, number = found["failed"]
        raise NativeUnavailableError(f"made wrong code (check {number} failed with {threads} threads)")
    content = library.read_bytes()
    return LibraryVerdict(
        level=level.name,
        compiler=compiler.name,
        speed=found["speed"],
        read_speed=found["read"],
        size=len(content),
        sha256=sha256(content).hexdigest(),
        made=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _checked(library: Path) -> dict[str, Any]:
    threads = most_threads(num_cores(), cpu_quota())
    command = [sys.executable, "-I", "-S", str(_CHECK), str(library), str(threads), str(LEAST_SHARE)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_CHECK_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailableError(f"made code whose check does not end within {_CHECK_SECONDS} s") from error
    if run.returncode < 0:
        raise NativeUnavailableError(f"made code that crashes ({signal.Signals(-run.returncode).name})")
    if run.returncode:
        raise NativeUnavailableError(f"made code that cannot be loaded ({run.stderr.strip().splitlines()[-1]})")
    return dict(json.loads(run.stdout))


class UnusableFolderError(Exception):
    """A folder in which no library may or can be kept; the message says why and how to mend it."""


def shared_folder() -> Path:
    """Where libraries are kept for the next run, made where it is missing.

    Raises `UnusableFolderError` where others could put their code into it, or no one can.
    """
    folder = cache_directory() / "native"
    try:
        folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.stat()
        is_noexec = _is_noexec(folder)
        above = (*folder.absolute().parents, *folder.resolve().parents)  # of a link, too
        exposed = next((parent for parent in above if _others_may_replace_in(parent)), None)
    except OSError as error:
        raise UnusableFolderError(f"{folder} cannot be used ({error.strerror or error}){_ELSEWHERE}") from error
    if about.st_uid != os.geteuid():
        raise UnusableFolderError(f"{folder} belongs to another user{_ELSEWHERE}")
    if about.st_mode & _OTHERS_WRITE:
        raise UnusableFolderError(f"others can write to {folder}; run `chmod 700 {folder}`")
    if exposed is not None:
        raise UnusableFolderError(f"others can put another folder in the place of {folder}, in {exposed}{_ELSEWHERE}")
    if is_noexec:
        raise UnusableFolderError(f"{folder} lies on a volume that runs no programs (noexec){_ELSEWHERE}")
    return folder


def private_folder() -> Path:
    """A folder of this process, removed when it ends. Raises `NativeUnavailableError`."""
    try:
        folder = _private().path
        is_noexec = _is_noexec(folder)
    except OSError as error:
        raise NativeUnavailableError(f"no temporary folder can be made ({error.strerror or error})") from error
    if is_noexec:
        raise NativeUnavailableError(
            f"{folder.parent} lies on a volume that runs no programs (noexec); set TMPDIR or {CACHE_VARIABLE} to a "
            "folder on one that does"
        )
    return folder


@cache
def _private() -> TemporaryFolder:
    return TemporaryFolder("selfspec-kernels-")


def _is_noexec(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0))


def _others_may_replace_in(folder: Path) -> bool:
    """Whether another user could put something else in the place of what is ours in there.

    Root could anyway. A group that is called like its user is that user's own, by convention.
    """
    about = folder.stat()
    if about.st_uid not in (0, os.geteuid()):
        return True
    if about.st_mode & stat.S_ISVTX:  # only owners rename what is theirs
        return False
    return bool(about.st_mode & stat.S_IWOTH) or (bool(about.st_mode & stat.S_IWGRP) and not _is_own(about.st_gid))


def _is_own(group: int) -> bool:
    import grp
    import pwd

    try:
        return group == 0 or grp.getgrgid(group).gr_name == pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user or group without a name
        return False


def recorded(library: Path) -> LibraryVerdict | None:
    """The verdict on a kept library; None where there is none, or where it must not be trusted."""
    record = _record(library)
    if not (_is_ours(library) and _is_ours(record)):
        return None
    verdict = LibraryVerdict.read(record)
    return verdict if verdict and verdict.fits(library) else None


def keep(made: Path, verdict: LibraryVerdict, library: Path) -> None:
    """Put a judged file in its place, on disk when this returns. Raises `StorageError`."""
    for path, content in ((library, made.read_bytes()), (_record(library), verdict.model_dump_json(indent=2).encode())):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)  # a link would be written through
        write_atomic(path, content)
        path.chmod(0o600)


@contextmanager
def build_folder(folder: Path) -> Iterator[Path]:
    """A folder to build in, inside ``folder``; gone afterwards, and one process has it at a time.

    What a killed process left is swept. Raises `UnusableFolderError` where ``folder`` cannot be written.
    """
    lock = FileLock(str(folder / ".lock"), timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise UnusableFolderError(f"another process has built in {folder} for {_LOCK_SECONDS // 60} minutes") from error
    except (OSError, NotImplementedError) as error:
        raise UnusableFolderError(f"{folder} cannot be written ({error}){_ELSEWHERE}") from error
    try:
        for left in (*folder.glob(f"{_BUILD}*"), *folder.glob(".kernels-*.tmp")):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix=_BUILD, dir=folder, ignore_cleanup_errors=True) as made:
            yield Path(made)
    except (OSError, StorageError) as error:
        raise UnusableFolderError(f"{folder} cannot be written ({error}){_ELSEWHERE}") from error
    finally:
        lock.release()


def _record(library: Path) -> Path:
    return library.with_suffix(".json")


def _is_ours(path: Path) -> bool:
    """A file, no link, of this user, to which no one else can write."""
    try:
        about = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & _OTHERS_WRITE
