"""What a model's files say, looked at before transformers builds anything from them.  Imports no torch."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfspec_tune.errors import FileFormatError
from selfspec_tune.files import read_json
from selfspec_tune.text_encoding import wide_encoding

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


def check_depth(file: Path, depth: Any) -> None:
    """Raise `FileFormatError` where ``file`` states more layers than a model can have, or none."""
    if isinstance(depth, int) and not 1 <= depth <= _MOST_LAYERS:
        raise FileFormatError(
            f"{file} states {depth} layers; expected 1 to {_MOST_LAYERS}. It is damaged or no model's: get it again."
        )


def read_config(file: Path) -> dict[str, Any]:
    """The configuration as it is written; empty where it is no JSON object, of which transformers says more.

    Raises `FileFormatError` where it is in an encoding that transformers does not read, or states more layers than a
    model can have.
    """
    begun = first_bytes(file, _ENOUGH)
    if begun.startswith(_MARKS) or wide_encoding(begun):
        raise FileFormatError(
            f"{file} is no UTF-8 without a byte-order mark, which is what transformers reads. Save it as that."
        )
    try:
        config = read_json(file)
    except FileFormatError:
        return {}
    if not isinstance(config, dict):
        return {}
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _DEPTH_KEYS:
            check_depth(file, part.get(key))
    return config


def stated_context(config: Mapping[str, Any]) -> int | None:
    """The context length that a configuration states, the longest where it states several; None where it does not."""
    own = config.get("text_config")
    lengths = [(own if isinstance(own, Mapping) else config).get(key) for key in CONTEXT_KEYS]
    return max((length for length in lengths if type(length) is int and length > 0), default=None)
