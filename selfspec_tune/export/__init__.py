"""Results and drafts in other programs' files."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.callable_package import make_callable
from selfspec_tune.checks import check_option_names, checked_arguments, path_or_none, text_or_none

if TYPE_CHECKING:
    from selfspec_tune.export.skip_files import export_dialect, known_num_layers
    from selfspec_tune.export.spec_bench import write_spec_bench
    from selfspec_tune.export.tables import write_csv, write_parquet

__all__ = ["export", "export_dialect", "known_num_layers", "write_csv", "write_parquet", "write_spec_bench"]

_HOMES = {  # loaded on first use: the command line asks for the names of formats alone
    "export_dialect": "skip_files",
    "known_num_layers": "skip_files",
    "write_csv": "tables",
    "write_parquet": "tables",
    "write_spec_bench": "spec_bench",
}
_SKIP_FILE = "skip.json"
_OF_A_DRAFT = ("gguf", "weights", "draft_tokens", "force", "revision")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


@checked_arguments
def export(
    source: str | os.PathLike[str],
    to: str,
    *,
    out: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    task: str | None = None,
    **options: Any,
) -> Any:
    """Write a skip set in another project's format, or as a draft that another runtime runs.

    Args:
        source: what `search` returned, a study, a skip.json, or another project's file.
        to: a skip-set dialect, or a draft: one of `selfspec_tune.export.formats.FORMATS`.
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
    from selfspec_tune.draft.dialects import Dialect
    from selfspec_tune.errors import UsageError
    from selfspec_tune.export.formats import FORMATS
    from selfspec_tune.export.skip_files import export_dialect
    from selfspec_tune.export.write import export_draft
    from selfspec_tune.files import write_json_atomic
    from selfspec_tune.requests import ExportRequest

    path, target, name = Path(source), path_or_none("out", out), text_or_none(model)
    path = path / _SKIP_FILE if path.is_dir() else path
    if to in list(Dialect):
        if options:
            raise UsageError(f"{to} writes a file of skips alone, so {', '.join(options)} means nothing. Leave it out.")
        value = export_dialect(path, Dialect(to), task=task, model=name)
        if target is not None:
            if target.exists():
                raise UsageError(f"{target} is there already. Give another name.")
            write_json_atomic(target, value)
        return value
    if to not in FORMATS:
        raise UsageError(f"{to!r} is no format; expected one of {', '.join((*Dialect, *FORMATS))}.")
    if target is None:
        raise UsageError(f"{to} makes a folder: name it with out.")
    if task is not None:
        raise UsageError(f"{to} is a draft, which is keyed by no task, so task means nothing. Leave it out.")
    check_option_names("an export", options, _OF_A_DRAFT)
    if isinstance(options.get("gguf"), str):
        options["gguf"] = path_or_none("gguf", options["gguf"])
    return export_draft(ExportRequest(path, to, target, name, **options)).to_dict()


make_callable(__name__, export)
