"""Opens GGUF files, and says what a file is that holds no language model.  Imports no torch."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.errors import FileFormatError
from selfspec_tune.models.config_file import first_bytes, is_lfs_pointer

if TYPE_CHECKING:
    from gguf import GGUFReader

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_UNKNOWN_TYPE = re.compile(r"(\d+)\)? is not a valid GGMLQuantizationType")
_NO_MODELS = {
    "adapter": "a LoRA adapter. Merge it into its base model (llama-export-lora does), and give the merged file.",
    "mmproj": "the projector of a multimodal model. Give the GGUF file of the language model that it belongs to.",
    "imatrix": "an importance matrix for quantising. Give the GGUF file of the model that it was measured on.",
}


def begins_like_gguf(path: Path) -> bool:
    """Whether the file begins with GGUF's magic bytes, whatever it is called; False where it cannot be read."""
    return first_bytes(path).startswith(_MAGIC)


def open_gguf(path: Path) -> GGUFReader:
    """The metadata and the tensors of a language model's file, read lazily.

    Raises:
        FileFormatError: it is no GGUF file or an incomplete one, of another version or byte order, one part of
            several, no language model, or holds tensors of a type that the installed gguf package does not know.
    """
    _check_version(path)
    from selfspec_tune.models.gguf_quick import QuickReader

    try:
        reader: GGUFReader = QuickReader(path)
        parts, kind = int(value_of(reader, "split.count", 1)), str(value_of(reader, "general.type", "model"))
        architecture = value_of(reader, "general.architecture", "")
    except Exception as error:  # the package checks little: a damaged file raises whatever its bytes lead to
        raise _unreadable(path, error) from error
    if parts > 1:
        raise FileFormatError(
            f"{path} is one of {parts} files of a split model. Merge them first: llama-gguf-split --merge."
        )
    kind = "mmproj" if architecture == "clip" else kind
    if kind in _NO_MODELS:
        raise FileFormatError(f"{path} holds no language model, but {_NO_MODELS[kind]}")
    if not reader.tensors:
        raise FileFormatError(f"{path} holds a vocabulary and no weights. Give the GGUF file of a whole model.")
    return reader


def value_of(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """A metadata value, as plain Python; ``default`` where the file has no such key."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


def package() -> str:
    """The gguf package that reads files here, with its version."""
    return f"gguf {version('gguf')}"


def _check_version(path: Path) -> None:
    """Raise `FileFormatError` where the gguf package refuses the file by its first numbers."""
    begin = first_bytes(path)
    if not begin.startswith(_MAGIC) or len(begin) < 8:
        return
    version, swapped = int.from_bytes(begin[4:8], "little"), int.from_bytes(begin[4:8], "big")
    if version in _VERSIONS:
        return
    if swapped in _VERSIONS:
        raise FileFormatError(
            f"{path} is a big-endian GGUF file, made for other processors. Turn it round, which changes the file "
            f"itself: gguf-convert-endian {path} little (of the gguf package)."
        )
    if version == 0:
        raise FileFormatError(f"The file {path} is no complete GGUF file (its version is 0). Get it again.")
    if version < min(_VERSIONS):
        reason = "which is of 2023 and nothing reads any more"
        more = "Get a newer file of this model, or convert the original checkpoint: llama.cpp's convert_hf_to_gguf.py."
    else:
        reason = f"which {package()} does not know"
        more = "Update it (pip install --upgrade gguf), or give the original checkpoint's directory or hub id."
    raise FileFormatError(f"{path} is a GGUF file of version {version}, {reason}; expected version 2 or 3. {more}")


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    if isinstance(error, FileNotFoundError):
        return FileFormatError(f"{path} does not exist. Check the path.")
    if unknown := _UNKNOWN_TYPE.search(str(error)):
        return FileFormatError(
            f"{path} holds tensors of type {unknown[1]}, which {package()} does not know: the file is newer. Update it "
            "(pip install --upgrade gguf), give the original checkpoint, or quantise that to a common type such as "
            "Q8_0 or Q4_K_M."
        )
    if is_lfs_pointer(path):
        return FileFormatError(
            f"{path} is no GGUF file but a pointer of Git LFS to one. Fetch the file itself: git lfs pull."
        )
    begin = first_bytes(path)
    reason = str(error) if begin.startswith(_MAGIC) else f"it begins with {begin!r}, not with {_MAGIC!r}"
    return FileFormatError(f"The file {path} is no complete GGUF file ({reason}). Get it again.")
