"""``selfspec-export.json``: what an export says of itself, its files, and whether its code is what we write."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field

from selfspec_tune.checks import number
from selfspec_tune.errors import FileFormatError
from selfspec_tune.export.checkpoint import BESIDE, INDEX, WEIGHTS
from selfspec_tune.export.formats.hf import code_of
from selfspec_tune.export.formats.nas import AUTO_MAP, model_code
from selfspec_tune.files import read_object, read_settings, read_text, taken_apart
from selfspec_tune.requests import DraftFormat
from selfspec_tune.results import Record, SkipLayers

MANIFEST = "selfspec-export.json"
SCHEMA, VERSION = "selfspec-tune/export", 1
_AGAIN = "Export it again with `force`."
_CODE = ("configuration_decilm.py", "modeling_decilm.py", "custom_generate/generate.py")
_NAMES = frozenset({MANIFEST, WEIGHTS, INDEX, *BESIDE, *_CODE, "config.json", "trtllm.yaml", "draft.gguf"})
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
_FOLDER = "custom_generate"
_ADAPTER = "adapter_config.json"  # which leads to another model
_SETTINGS = "SETTINGS = json.loads("


class _Manifest(Record):
    """What is read of a manifest again, in the words of `selfspec_tune.export.write`."""

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


def check_own_code(folder: Path, format_: DraftFormat) -> None:
    """Raise `FileFormatError` where an export holds code that an export of this version does not write.

    Or leads to code elsewhere, or lacks its own.
    """
    files = list(folder.rglob("*"))
    for file in files:
        if file.is_symlink() or file.name == _ADAPTER:
            raise _not_ours(file)
    wanted: dict[str, str] = {}
    if format_ is DraftFormat.NAS:
        wanted = model_code()
        if read_settings(folder / "config.json").get("auto_map") != AUTO_MAP:
            raise _not_ours(folder / "config.json")
    elif format_ is DraftFormat.TRANSFORMERS_GENERATE:
        name = str(Path("custom_generate") / "generate.py")
        wanted = {name: _rewritten(folder / name) if (folder / name).is_file() else ""}
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise FileFormatError(f"{folder} lacks {missing[0]}. Export it again with `force`.")
    for file in files:
        if file.suffix == ".py" and read_text(file) != wanted.get(str(file.relative_to(folder))):
            raise _not_ours(file)


def _rewritten(file: Path) -> str:
    """What an export with the file's own settings writes."""
    lines = [line for line in read_text(file).splitlines() if line.startswith(_SETTINGS)]
    try:
        return code_of(json.loads(ast.literal_eval(lines[0].removeprefix(_SETTINGS).removesuffix(")"))))
    except (IndexError, ValueError, SyntaxError, TypeError) as error:
        raise _not_ours(file) from error


def _not_ours(file: Path) -> FileFormatError:
    return FileFormatError(
        f"{file} is not what this version of the program writes, and no other code is run. Export it again with "
        "`force`."
    )
