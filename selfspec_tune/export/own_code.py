"""Whether the code in an export is what this program writes: no other is run on a manifest's word."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from selfspec_tune.errors import FileFormatError
from selfspec_tune.export.generate import code_of
from selfspec_tune.export.nas import AUTO_MAP, model_code
from selfspec_tune.files import read_settings, read_text
from selfspec_tune.requests import DraftFormat

_ADAPTER = "adapter_config.json"  # which leads to another model
_SETTINGS = "SETTINGS = json.loads("


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
        raise FileFormatError(f"{folder} lacks {missing[0]}. Export it again with --force.")
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
        "--force."
    )
