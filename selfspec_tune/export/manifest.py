"""``selfspec-export.json``: what an export says of itself, and which files an export can hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from selfspec_tune.bounds import number
from selfspec_tune.errors import FileFormatError
from selfspec_tune.export.checkpoint import BESIDE, INDEX, WEIGHTS
from selfspec_tune.files import read_object, taken_apart
from selfspec_tune.results import Record, SkipLayers

MANIFEST = "selfspec-export.json"
SCHEMA, VERSION = "selfspec-tune/export", 1
_AGAIN = "Export it again with --force."
_CODE = ("configuration_decilm.py", "modeling_decilm.py", "custom_generate/generate.py")
_NAMES = frozenset({MANIFEST, WEIGHTS, INDEX, *BESIDE, *_CODE, "config.json", "trtllm.yaml", "draft.gguf"})
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
_FOLDER = "custom_generate"


class _Manifest(Record):
    """What is read of a manifest again, in the words of `selfspec_tune.export.drafts`."""

    format: str
    model: str
    gguf: str | None
    model_fingerprint: str | None
    skip: SkipLayers
    read_prompts: list[str]
    draft_bytes: int = Field(ge=0)
    draft_tokens: int = Field(ge=1, le=1024)
    settings: dict[str, float | int | None]
    files: dict[str, int]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export. Raises `FileFormatError` where it is missing, damaged or of another version."""
    file = folder / MANIFEST
    manifest = read_object(file)
    if (manifest.get("schema"), manifest.get("version")) != (SCHEMA, VERSION):
        raise FileFormatError(f"{file} is no manifest of this version. {_AGAIN}")
    with taken_apart(file, _AGAIN):
        _Manifest.model_validate(manifest, strict=True)
        number("settings.exit_threshold", manifest["settings"]["exit_threshold"], 0.0, 1.0)
    return manifest


def others_in(folder: Path) -> list[str]:
    """What in an export's folder no export has put there, by name: links and folders, too.

    A manifest can be edited, so what it lists counts only where an export may write such a file.
    """
    files = read_object(folder / MANIFEST).get("files")
    listed = {*(files if isinstance(files, dict) else ()), MANIFEST}
    others = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_ours = name in listed and (name in _NAMES or _SHARD.fullmatch(name) is not None) and path.is_file()
        is_our_folder = name == _FOLDER and path.is_dir()
        if path.is_symlink() or not (is_ours or is_our_folder):
            others.append(name)
    return others
