"""The store: where compiled libraries are kept, and what lies there that may be loaded.

A library is code that this process runs. So only files count that are ours, that no one
else can write to, and that are what the verdict beside them was given on.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from selfspec_tune.engine.native.verdict import Verdict
from selfspec_tune.errors import NativeUnavailableError, StorageError
from selfspec_tune.files import write_atomic
from selfspec_tune.leftovers import TemporaryFolder
from selfspec_tune.models.default_model import CACHE_VARIABLE, cache_directory

_BUILD = "build-"  # what folders of unfinished builds begin with
_LOCK_SECONDS = 900
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ELSEWHERE = f"; set {CACHE_VARIABLE} to a folder of your own"


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


def lookup(library: Path) -> Verdict | None:
    """The verdict on a kept library; None where there is none, or where it must not be trusted."""
    record = _record(library)
    if not (_is_ours(library) and _is_ours(record)):
        return None
    verdict = Verdict.read(record)
    return verdict if verdict and verdict.fits(library) else None


def keep(made: Path, verdict: Verdict, library: Path) -> None:
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
