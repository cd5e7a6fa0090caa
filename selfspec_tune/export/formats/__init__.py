"""The formats of drafts for other runtimes, one a module, which is loaded when the format is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from selfspec_tune.errors import UsageError

if TYPE_CHECKING:
    from selfspec_tune.export.format import ExportFormat

# What is registered: the name, and the module whose FORMAT it is.
FORMATS: dict[str, str] = {
    "hf-draft": "selfspec_tune.export.formats.hf_draft",
    "hf-zero": "selfspec_tune.export.formats.hf_zero",
    "nas": "selfspec_tune.export.formats.nas",
    "gguf": "selfspec_tune.export.formats.gguf",
    "transformers-generate": "selfspec_tune.export.formats.transformers_generate",
}


def export_format(name: str) -> ExportFormat[Any]:
    """The format of that name. Raises `UsageError` where none is registered."""
    if name not in FORMATS:
        raise UsageError(f"{name!r} is no format; expected one of {', '.join(FORMATS)}.")
    found: ExportFormat[Any] = import_module(FORMATS[name]).FORMAT
    return found
