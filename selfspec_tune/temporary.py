"""Temporary files and folders that a killed process leaves: swept by the next one that needs such a name.

Each is locked for as long as its process lives, and the system frees a dead one's lock. So only what
nobody holds is removed; where locks cannot be had, nothing is.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # no such system call here
    _HAS_LOCKS = False
else:
    _HAS_LOCKS = True

_DIGITS = 8  # hexadecimal, of a name


def temporary_name(prefix: str, suffix: str = "") -> str:
    """A name that `sweep` finds by the same prefix and suffix."""
    return f"{prefix}{secrets.token_hex(_DIGITS // 2)}{suffix}"


def hold(path: Path) -> int | None:
    """Lock a file or folder until the returned descriptor is closed; None where locks cannot be had.

    Raises `BlockingIOError` where another process holds it, `FileNotFoundError` where one has removed it.
    """
    if not _HAS_LOCKS:
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            raise FileNotFoundError(path)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise
    except OSError:  # a volume without locks
        os.close(descriptor)
        return None
    return descriptor


def release(descriptor: int | None) -> None:
    """Let go of what `hold` returned."""
    if descriptor is not None:
        os.close(descriptor)


def sweep(folder: Path, prefix: str, suffix: str = "") -> None:
    """Remove what dead processes of this user left in ``folder`` under a `temporary_name`."""
    if not _HAS_LOCKS:
        return
    pattern = re.compile(f"{re.escape(prefix)}[0-9a-f]{{{_DIGITS}}}{re.escape(suffix)}")
    with suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if pattern.fullmatch(entry.name)]:
            with suppress(OSError):
                _remove_if_dead(folder / name)


def _remove_if_dead(path: Path) -> None:
    about = path.lstat()
    if about.st_uid != os.geteuid() or not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        return
    lock = hold(path)
    if lock is None:
        return
    try:
        _remove(path)
    finally:
        release(lock)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class TemporaryFolder:
    """A folder of this process, gone when the block or the process ends; those of dead processes are swept first.

    It lies in ``parent``, by default the system's folder for temporary files. Raises `OSError`.
    """

    def __init__(self, prefix: str, suffix: str = "", *, parent: Path | None = None, mode: int = 0o700) -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        sweep(parent, prefix, suffix)
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            self.path = parent / temporary_name(prefix, suffix)
            with suppress(FileExistsError, BlockingIOError, FileNotFoundError):  # a name that is taken, or just swept
                self.path.mkdir(mode)
                lock = hold(self.path)
                break
        self._end = weakref.finalize(self, _end, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _end(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    release(lock)
