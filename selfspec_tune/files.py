"""Reading and writing files so that a crash, a full disk or a bad file is never a surprise.

Whole files are replaced atomically; records are appended one line at a time. What cannot
be written raises `StorageError`, what cannot be read `FileFormatError`: `read_json` and `read_jsonl` for text that is
not JSON, `taken_apart` for JSON of another shape than the program writes.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from selfspec_tune.checks import finite, how_to_convert, parse_json, shown, wide_encoding
from selfspec_tune.errors import FileFormatError, SelfSpecError, StorageError, UsageError
from selfspec_tune.temporary import hold, release, sweep, temporary_name

HASH_LENGTH = 16
# A list, indented, of neither texts nor lists nor objects. No text of JSON holds the end of a line.
_NUMBERS = re.compile(r"\[\n\s*([^\[\]{}\"]*?)\s*\]")
DAMAGED = "It may be damaged: restore a copy, or begin again with another `out`."
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_ANY_ADVICE = "Choose a folder that you may write to."
_IN_THE_WAY = "Something else has the name of a folder there: move it away, or choose a folder elsewhere."
_NOT_YOURS = "Choose a folder that you may write to, or have its owner let you."
_ADVICE = {
    **dict.fromkeys(_NO_SPACE, "Free some space, or choose a folder on another volume."),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), _IN_THE_WAY),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _NOT_YOURS),
    errno.EROFS: "Nobody can write there as it is: choose a folder on another volume.",
    errno.EISDIR: "That is a folder: give the name of a file.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Its links lead back to themselves: remove them, or choose a folder elsewhere.",
    errno.ENOENT: "Something on the way to it is not there, or a link that leads nowhere: choose a folder elsewhere.",
}


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

    The new file is written beside the old one, flushed to disk, then renamed over it. It gets the old one's mode, and
    where ``path`` is a link, the file that this leads to is replaced. Missing folders are made. Raises `StorageError`
    and leaves the old file untouched.
    """
    target = Path(path)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
        if target.is_symlink():  # a link that leads to itself
            raise storage_error(target, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
    content = _encoded(data) if isinstance(data, str) else data
    try:
        with _temporary_beside(target) as temporary:
            with temporary.open("r+b") as file:
                if target.exists():
                    os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise storage_error(target, error) from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `StorageError` where `write_atomic` could not write ``path``; makes missing folders, and leaves nothing."""
    target = Path(path)
    try:
        with _temporary_beside(target):
            pass
    except OSError as error:
        raise storage_error(target, error) from error


def sweep_temporaries(*targets: Path) -> None:
    """Remove what killed processes left of writing these files."""
    for target in targets:
        sweep(target.parent, f".{target.name}.", ".tmp")


@contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    """An empty file to be renamed to ``target``, else removed when the block ends. Missing folders are made.

    What killed processes left of such files is swept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(target)
    while True:
        temporary = target.with_name(temporary_name(f".{target.name}.", ".tmp"))
        temporary.open("xb").close()
        with suppress(BlockingIOError, FileNotFoundError):  # another process has just swept it
            lock = hold(temporary)
            break
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        release(lock)


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """`write_atomic` of ``value`` as indented UTF-8 JSON, lists of numbers on one line (no NaN, no infinities)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def append_jsonl(path: str | os.PathLike[str], *values: Any) -> None:
    """Add each of ``values`` as a line, in one write, on disk when this returns; one writer a file.

    A line torn by an earlier crash is cut off first. Raises `StorageError`; what a failed
    write left of its lines is taken back.
    """
    lines = b"".join(_encoded(json.dumps(value, ensure_ascii=False, allow_nan=False)) + b"\n" for value in values)
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
            records.append(parse_json(line))
        except ValueError as error:
            raise FileFormatError(
                f"{source}, line {number} is not JSON ({error}). Remove that line, or restore the file."
            ) from error
    return records


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file. Raises `FileFormatError` if it is missing or corrupt."""
    return _json(Path(path), parse_json)


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file of ours. Raises `FileFormatError` if it is missing, corrupt or another value."""
    return _object(read_json(path), path)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a model's own JSON file, read as transformers does: there infinity is a number, and the last wins.

    Raises `FileFormatError` if it is missing, corrupt or another value.
    """
    return _object(_json(Path(path), json.loads), path)


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The table in a TOML file. Raises `FileFormatError` if it is missing or corrupt."""
    try:
        return tomllib.loads(read_text(path), parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{os.fspath(path)} is not valid TOML ({error}). Fix that line.") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, or of a UTF-16 one that says so; a byte order mark is no part of it.

    Raises `FileFormatError` if it is missing or not text, or UTF-16 that does not say so.
    """
    return _read_text(Path(path), also_utf_16=True)


@contextmanager
def taken_apart(path: str | os.PathLike[str], remedy: str = DAMAGED) -> Iterator[None]:
    """Whatever is raised where a file's values are made into something else, as a `FileFormatError` naming the file.

    For that alone: within it, nothing but the file's values can be wrong. ``remedy``: what to do.
    """
    try:
        yield
    except FileFormatError as error:
        raise error if str(path) in str(error) else FileFormatError(f"{path}: {error}") from error
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, SelfSpecError) and not isinstance(error, UsageError):
            raise
        raise FileFormatError(f"{path} is not as this program writes it ({_why(error)}). {remedy}") from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """A `StorageError` that names the path, the reason and what helps against it."""
    reason = error.strerror or str(error)
    room = _space_left(path) if error.errno in _NO_SPACE else ""
    return StorageError(f"Cannot write {path}: {reason}{room}. {_ADVICE.get(error.errno or 0, _ANY_ADVICE)}")


def _json(source: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(_read_text(source, also_utf_16=True))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"{source} is not valid JSON ({error}). It may be truncated: write it again or restore a copy."
        ) from error


def _object(value: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds {shown(value)}; expected a JSON object. Is it the right file?")
    return value


def _why(error: Exception) -> str:
    """What a reader of records raised, in one line of words."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    problem = first_problem(error)
    if problem or isinstance(error, UsageError):
        return problem or str(error).rstrip(".")
    return (str(error).splitlines() or ["a value is missing"])[0][:200] or "a value is missing"


def first_problem(error: Exception) -> str | None:
    """``model.num_layers: …``: what pydantic found wrong first, what was given and where; None of another error."""
    if not hasattr(error, "errors"):
        return None
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the whole"
    reason = problem["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
    given = problem["input"]
    is_short = problem["type"] not in ("missing", "value_error") and not isinstance(given, dict | list)
    return f"{place}: {reason}" + (f", not {shown(given)}" if is_short else "")


def _encoded(text: str) -> bytes:
    """UTF-8, with bytes of file names that are no text written as JSON writes them."""
    return text.encode(errors="backslashreplace")


def _read_text(path: Path, *, also_utf_16: bool = False) -> str:
    try:
        if stat.S_ISCHR(path.stat().st_mode):
            raise FileFormatError(f"{path} is a device, which may have no end; expected a file.")
        content = path.read_bytes()
        is_marked = content.startswith(_UTF_16)
        if is_marked and also_utf_16:
            return content.decode("utf-16")
        if encoding := "UTF-16" if is_marked else wide_encoding(content):
            raise FileFormatError(
                f"{path} is {encoding} text; expected UTF-8. Save it as UTF-8; {how_to_convert(encoding)} does so."
            )
        return content.decode("utf-8-sig")
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
