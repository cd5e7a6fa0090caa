"""An export's folder: what may be replaced in it, how it comes into its place, and whether its code is ours."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from stat import S_IMODE
from typing import Any

from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.export.format import AGAIN, ExportFormat, not_ours
from selfspec_tune.export.formats import FORMATS, export_format
from selfspec_tune.files import read_object, read_text
from selfspec_tune.results import MANIFEST, ExportManifest
from selfspec_tune.temporary import hold, release, sweep, temporary_name

_ADAPTER = "adapter_config.json"  # which leads to another model


def check_free(out: Path, *, force: bool) -> None:
    """Raise `UsageError` unless an export may be written to ``out``; ``force``: also in place of an earlier one."""
    if out.is_symlink():
        raise UsageError(f"{out} is a symbolic link, which an export never follows. Give the folder itself.")
    if not out.exists():
        return
    if not force:
        raise UsageError(f"{out} is there already. Give another `out`, or `force` to replace an earlier export.")
    if not (out / MANIFEST).is_file() or read_object(out / MANIFEST).get("schema") != ExportManifest.SCHEMA:
        raise UsageError(f"{out} holds no export of ours, so `force` does not replace it. Give another `out`.")
    if others := others_in(out):
        raise UsageError(
            f"{out} holds files that no export wrote ({', '.join(others[:3])}), so `force` does not replace it. Move "
            "them, or give another `out`."
        )


def others_in(folder: Path) -> list[str]:
    """What in an export's folder no export has put there, by name: links and folders, too.

    A manifest can be edited, so what it lists counts only where an export may write such a file.
    """
    formats = [export_format(name) for name in FORMATS]
    folders = {str(parent) for one in formats for name in one.files for parent in PurePosixPath(name).parents}
    files = read_object(folder / MANIFEST).get("files")
    listed = {*(files if isinstance(files, dict) else ()), MANIFEST}
    others = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_ours = name in listed and (name == MANIFEST or any(one.owns(name) for one in formats)) and path.is_file()
        is_our_folder = name in folders and path.is_dir()
        if path.is_symlink() or not (is_ours or is_our_folder):
            others.append(name)
    return others


def check_own_code(folder: Path, format_: ExportFormat[Any]) -> None:
    """Raise `FileFormatError` where an export holds code that an export of this version does not write.

    Or leads to code elsewhere, or lacks its own.
    """
    files = list(folder.rglob("*"))
    for file in files:
        if file.is_symlink() or file.name == _ADAPTER:
            raise not_ours(file)
    wanted = format_.code(folder)
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise FileFormatError(f"{folder} lacks {missing[0]}. {AGAIN}")
    for file in files:
        if file.suffix == ".py" and read_text(file) != wanted.get(file.relative_to(folder).as_posix()):
            raise not_ours(file)


def set_modes(folder: Path, out: Path, mode: int) -> None:
    """Give every file the ``mode`` that new files get here, or that of the file in ``out`` that it replaces."""
    for file in folder.rglob("*"):
        if file.is_file():
            old = out / file.relative_to(folder)
            file.chmod(S_IMODE(old.stat().st_mode) if old.is_file() else mode)


def put(temporary: Path, out: Path) -> None:
    """Move the folder into its place; an earlier export there goes once the new one is whole."""
    if out.exists():
        held = hold(out)
        old = out.with_name(temporary_name(f".{out.name}.", ".old"))
        out.rename(old)
        try:
            temporary.rename(out)
        except OSError:
            old.rename(out)
            raise
        finally:
            release(held)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(out)
    sweep(out.parent, f".{out.name}.", ".old")
