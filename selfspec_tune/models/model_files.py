"""What a model's files say, read before anything is built from them. Imports no torch."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.checks import how_to_convert, shown, wide_encoding
from selfspec_tune.errors import FileFormatError
from selfspec_tune.files import read_json, read_settings

if TYPE_CHECKING:
    from gguf import GGUFReader

Rule = tuple[Callable[[Any], bool], str]
_MOST_LAYERS = 1000  # more than any model has; transformers writes lists as long, and takes minutes for a billion
_LFS_POINTER = b"version https://git-lfs"
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as some editors write them
_ENOUGH = 512  # bytes, of which the encoding can be told
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_UNKNOWN_TYPE = re.compile(r"(\d+)\)? is not a valid GGMLQuantizationType")
_NO_MODELS = {
    "adapter": "a LoRA adapter. Merge it into its base model (llama-export-lora does), and give the merged file.",
    "mmproj": "the projector of a multimodal model. Give the GGUF file of the language model that it belongs to.",
    "imatrix": "an importance matrix for quantising. Give the GGUF file of the model that it was measured on.",
}

"""Whether a value fits, and what is expected, in words."""


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number of at least ``least``; true and 1.0 are none."""
    return type(value) is int and value >= least


def is_number(value: Any) -> bool:
    """Whether it is a number, and a finite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _each(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The rule, of a value or of every one in a list: some architectures state one a layer."""
    return lambda value: all(map(rule, value)) if isinstance(value, list) else rule(value)


SIZE: Rule = (_each(lambda value: is_whole(value, 1)), "a whole number of at least 1")
COUNT: Rule = (lambda value: is_whole(value, 0), "a whole number of at least 0")
NUMBER: Rule = (is_number, "a number")
POSITIVE: Rule = (_each(lambda value: is_number(value) and value > 0), "a number above 0")
NOT_NEGATIVE: Rule = (lambda value: is_number(value) and value >= 0, "a number of at least 0")
SHARE: Rule = (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
OBJECT: Rule = (lambda value: isinstance(value, dict), "an object, or null")
LIST: Rule = (lambda value: isinstance(value, list | dict), "a list")
TEXT: Rule = (lambda value: isinstance(value, str), "a text")
TEXTS: Rule = (lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value), "texts")
TOKEN: Rule = (_each(lambda value: type(value) is int), "a token's number, or a list of such")


def by_key(kinds: Mapping[Rule, tuple[str, ...]]) -> dict[str, Rule]:
    """The rule of every key, of the keys of every rule."""
    return {key: rule for rule, keys in kinds.items() for key in keys}


def unfit(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> Iterator[tuple[str, str]]:
    """Keys whose values do not fit their rule, each with a clause that says so; null fits every rule."""
    for key, value in values.items():
        if value is not None and key in rules and not rules[key][0](value):
            yield key, f"{key} is {shown(value)}; expected {rules[key][1]}"


def first_bytes(file: Path, count: int = len(_LFS_POINTER)) -> bytes:
    """What the file begins with; empty where it cannot be read."""
    try:
        with file.open("rb") as opened:
            return opened.read(count)
    except OSError:
        return b""


def is_lfs_pointer(file: Path) -> bool:
    """Whether it only says where Git LFS keeps the file, as in a clone that was made without it."""
    return first_bytes(file) == _LFS_POINTER


def check_encoding(file: Path) -> None:
    """Raise `FileFormatError` where ``file`` is in an encoding that transformers does not read, though others do."""
    begun = first_bytes(file, _ENOUGH)
    if begun.startswith(_MARKS):
        raise FileFormatError(
            f"{file} begins with a byte-order mark, which transformers does not read. Save it as UTF-8 without one."
        )
    if wide := wide_encoding(begun):
        raise FileFormatError(f"{file} is {wide}, and transformers reads UTF-8: {how_to_convert(wide)}.")


def read_object(file: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file. Raises `FileFormatError` where transformers would not read it."""
    check_encoding(file)
    return read_settings(file)


def check_depth(file: Path, depth: Any) -> None:
    """Raise `FileFormatError` where ``file`` states more layers than a model can have, or none."""
    if isinstance(depth, int) and not 1 <= depth <= _MOST_LAYERS:
        raise FileFormatError(
            f"{file} states {depth} layers; expected 1 to {_MOST_LAYERS}. It is damaged or no model's: get it again."
        )


def read_config(file: Path) -> dict[str, Any]:
    """The configuration as it is written; empty where it is no JSON object, of which transformers says more.

    Raises `FileFormatError` where it is in an encoding that transformers does not read, states more layers than a model
    can have, or a quantisation that is none.
    """
    check_encoding(file)
    try:
        config = read_json(file)
    except FileFormatError:
        return {}
    if not isinstance(config, dict):
        return {}
    settings = config.get("quantization_config")
    if not isinstance(settings, dict | None):
        raise FileFormatError(
            f"{file}: quantization_config is {shown(settings)}; expected an object with a quant_method, or null. "
            "Mend it there, or get the file again."
        )
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _DEPTH_KEYS:
            check_depth(file, part.get(key))
    return config


def stated_context(config: Mapping[str, Any]) -> int | None:
    """The context length that a configuration states, the longest where it states several; None where it does not."""
    own = config.get("text_config")
    lengths = [(own if isinstance(own, Mapping) else config).get(key) for key in CONTEXT_KEYS]
    return max((length for length in lengths if type(length) is int and length > 0), default=None)


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
    from selfspec_tune.models.gguf_header import QuickReader, value_of

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
