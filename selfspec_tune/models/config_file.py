"""What a model's files say, looked at before transformers builds anything from them.  Imports no torch."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfspec_tune.bounds import shown
from selfspec_tune.errors import FileFormatError
from selfspec_tune.files import read_json, read_settings
from selfspec_tune.text_encoding import how_to_convert, wide_encoding

_MOST_LAYERS = 1000  # more than any model has; transformers writes lists as long, and takes minutes for a billion
_LFS_POINTER = b"version https://git-lfs"
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as some editors write them
_ENOUGH = 512  # bytes, of which the encoding can be told
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


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
