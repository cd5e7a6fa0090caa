"""``selfspec_tune.export``: an export from Python, by the same requests as the command's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from selfspec_tune.dialects import Dialect
from selfspec_tune.errors import UsageError
from selfspec_tune.export.skip_files import export_dialect
from selfspec_tune.requests import DraftFormat, ExportRequest

_SKIP_FILE = "skip.json"


def export(
    source: str | os.PathLike[str],
    to: str,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | None = None,
    task: str | None = None,
    **options: Any,
) -> Any:
    """Write a skip set in another project's format, or as a draft that another runtime runs.

    Args:
        source: what `search` returned, a study, a skip.json, or another project's file.
        to: a skip-set dialect, or a draft: hf-draft, hf-zero, nas, gguf or transformers-generate.
        out: the folder of a draft, which is made; the file of a dialect, None: none is written.
        model: the target, where ``source`` does not lead to it.
        task: for dialects that key skip sets by it.
        options: of a draft, further fields of `ExportRequest`.

    Returns:
        The draft's manifest, or the dialect's JSON value.

    Raises:
        UsageError: ``to`` is no format, an option means nothing, ``out`` is there already.
        SelfSpecError: the format cannot hold this draft, or it cannot be written.
    """
    path = Path(source)
    path = path / _SKIP_FILE if path.is_dir() else path
    if to in list(Dialect):
        if options:
            raise UsageError(f"{to} writes a file of skips alone, so {', '.join(options)} means nothing. Leave it out.")
        from selfspec_tune.files import write_json_atomic

        value = export_dialect(path, Dialect(to), task=task, model=model)
        if out is not None:
            if Path(out).exists():
                raise UsageError(f"{os.fspath(out)} is there already. Give another name.")
            write_json_atomic(out, value)
        return value
    if to not in list(DraftFormat):
        raise UsageError(f"{to!r} is no format; expected one of {', '.join((*Dialect, *DraftFormat))}.")
    if out is None:
        raise UsageError(f"{to} makes a folder: name it with out.")
    from selfspec_tune.export.drafts import export_draft

    return export_draft(ExportRequest(path, DraftFormat(to), Path(out), model, **options))
