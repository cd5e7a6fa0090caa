"""Reading and writing files so that a crash, a full disk or a bad file is never a surprise.

Whole files are replaced atomically; records are appended one line at a time. What cannot
be written raises `StorageError`, what cannot be read `FileFormatError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from selfspec_tune.errors import FileFormatError, StorageError

HASH_LENGTH = 16


def sha256_hex(text: str) -> str:
    """SHA-256 of the UTF-8 text, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def short_hash(text: str) -> str:
    """The first 16 hexadecimal digits of `sha256_hex`: what identifies prompts in our files."""
    return sha256_hex(text)[:HASH_LENGTH]


def writable(text: str) -> str:
    """``text`` as UTF-8 can hold it: a byte of a file's name that is none (a lone surrogate) as ``\\udce9``."""
    return text.encode(errors="backslashreplace").decode()


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace ``path`` by ``data``: a reader sees the old file or the new one, never a part.

    The new file is written beside the old one, flushed to disk, then renamed over it.
    Missing folders are made. Raises `StorageError` and leaves the old file untouched.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    content = data.encode() if isinstance(data, str) else data
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise storage_error(target, error) from error


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """`write_atomic` of ``value`` as indented UTF-8 JSON (NaN and infinities are refused)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def append_jsonl(path: str | os.PathLike[str], *values: Any) -> None:
    """Add each of ``values`` as a line, in one write, on disk when this returns; one writer a file.

    A line torn by an earlier crash is cut off first. Raises `StorageError`; what a failed
    write left of its lines is taken back.
    """
    lines = b"".join(json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n" for value in values)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab+", buffering=0) as file:
            end = _end_of_last_line(file.fileno())
            os.ftruncate(file.fileno(), end)
            try:
                _write_all(file.fileno(), lines)
            except OSError:
                os.ftruncate(file.fileno(), end)
                raise
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(target, error) from error


def read_jsonl(path: str | os.PathLike[str]) -> list[Any]:
    """Every record of a JSON-lines file, none if there is no such file yet.

    A last line without its newline was torn by a crash and is ignored; any other line
    that is not JSON raises `FileFormatError` with its number.
    """
    source = Path(path)
    if not source.exists():
        return []
    lines = _read_text(source).split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise FileFormatError(
                f"{source}, line {number} is not JSON ({error}). Remove that line, or restore the file."
            ) from error
    return records


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. Raises `FileFormatError` if it is missing or corrupt."""
    source = Path(path)
    try:
        return json.loads(_read_text(source))
    except ValueError as error:
        raise FileFormatError(
            f"{source} is not valid JSON ({error}). It may be truncated: write it again or restore a copy."
        ) from error


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file. Raises `FileFormatError` if it is missing or not text."""
    return _read_text(Path(path))


def storage_error(path: Path, error: OSError) -> StorageError:
    """A `StorageError` that names the path, the reason and the space left there."""
    reason = error.strerror or str(error)
    return StorageError(
        f"Cannot write {path}: {reason}{_space_left(path)}. Free some space, or choose a folder that you may write to."
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError as error:
        raise FileFormatError(f"{path} does not exist. Check the path.") from error
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not UTF-8 text ({error.reason}). Is it the right file?") from error


def _end_of_last_line(descriptor: int, block: int = 4096) -> int:
    """Offset just after the last newline of an open file, 0 if there is none."""
    position = os.lseek(descriptor, 0, os.SEEK_END)
    while position > 0:
        start = max(0, position - block)
        os.lseek(descriptor, start, os.SEEK_SET)
        newline = os.read(descriptor, position - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _space_left(path: Path) -> str:
    folder = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if folder is None:
        return ""
    with suppress(OSError):
        return f" ({shutil.disk_usage(folder).free / 2**20:.0f} MiB free in {folder})"
    return ""
