"""What is wrong with a checkpoint's files, looked for where transformers failed on them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from selfspec_tune.bounds import shown
from selfspec_tune.errors import FileFormatError
from selfspec_tune.files import read_settings
from selfspec_tune.models.config_file import first_bytes

_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_OBJECTS = ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")
_INDICES = {"model.safetensors": "safetensors", "pytorch_model.bin": "bin"}  # the one file, if it is not in parts
_PICKLED = (b"PK", b"\x80")  # a zip archive, as torch writes today, or a bare pickle
_DTYPES = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype) and value.is_floating_point}
_PARTS = ("text_config", "rope_parameters", "rope_scaling")
_REMEDY = "Mend it there, or get the file again."

_Rule = tuple[Callable[[Any], bool], str]


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _each(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The rule, of a value or of every one in a list: some architectures state one a layer."""
    return lambda value: all(map(rule, value)) if isinstance(value, list) else rule(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.removeprefix("torch.") in _DTYPES | {"auto"})


_SIZE: _Rule = (_each(_is_size), "a whole number of at least 1")
_POSITIVE: _Rule = (_each(lambda value: _is_number(value) and value > 0), "a number above 0")
_FLAG: _Rule = (lambda value: isinstance(value, bool), "true or false")
_OBJECT: _Rule = (lambda value: isinstance(value, dict), "an object, or null")
_TEXT: _Rule = (lambda value: isinstance(value, str), "a text")
_TEXTS: _Rule = (lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value), "texts")
_TOKEN: _Rule = (_each(lambda value: type(value) is int), "a token's number, or a list of such")
_DTYPE: _Rule = (_is_dtype, f"one of {', '.join(sorted(_DTYPES & {'float32', 'float16', 'bfloat16'}))}")
_ACTIVATION: _Rule = (lambda value: isinstance(value, str) and value in ACT2FN, "a function that transformers knows")

_ROPE: _Rule = (lambda value: value in ("default", *ROPE_INIT_FUNCTIONS), f"one of {', '.join(ROPE_INIT_FUNCTIONS)}")

# By their kind, what the keys of config.json hold; null is left to transformers.
_KINDS: Mapping[_Rule, tuple[str, ...]] = {
    _SIZE: (
        *("hidden_size", "n_embd", "d_model", "vocab_size", "intermediate_size", "moe_intermediate_size", "head_dim"),
        *("num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads", "sliding_window"),
        *("max_position_embeddings", "n_positions", "num_local_experts", "num_experts_per_tok"),
        "original_max_position_embeddings",
    ),
    _POSITIVE: (
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_eps",
        "norm_epsilon",
        "rope_theta",
        "factor",
    ),
    _FLAG: ("tie_word_embeddings", "use_cache", "attention_bias", "mlp_bias", "use_sliding_window"),
    _OBJECT: ("quantization_config", "rope_parameters", "rope_scaling", "text_config", "auto_map"),
    _TEXT: ("model_type",),
    _TEXTS: ("architectures", "layer_types"),
    _TOKEN: ("bos_token_id", "eos_token_id", "pad_token_id"),
    _DTYPE: ("dtype", "torch_dtype"),
    _ROPE: ("rope_type", "type"),
    _ACTIVATION: ("hidden_act", "hidden_activation", "activation_function"),
}
_RULES = {key: rule for rule, keys in _KINDS.items() for key in keys}


def find_fault(folder: Path) -> str | None:
    """The first fault of the checkpoint in ``folder``, in whole sentences; None where none is found."""
    return next(_faults(folder), None)


def _faults(folder: Path) -> Iterator[str]:
    read: dict[str, dict[str, Any]] = {}
    for name in _OBJECTS:
        if (file := folder / name).is_file():
            try:
                read[name] = read_object(file)
            except FileFormatError as error:
                yield str(error)
    config = read.get("config.json", {})
    for part in ("", *_PARTS):
        values = config.get(part) if part else config
        if isinstance(values, dict):
            where = f"{folder / 'config.json'}: {part}." if part else f"{folder / 'config.json'}: "
            yield from (f"{where}{fault} {_REMEDY}" for fault in _of_values(values))
    if "tokenizer.json" in read and not isinstance(read["tokenizer.json"].get("model"), dict):
        yield f"{folder / 'tokenizer.json'} has no object `model`, so it is no tokenizer's. Get the file again."
    for single, kind in _INDICES.items():
        if (folder / single).is_file():
            yield from _of_weights(folder / single)
        elif (index := folder / f"{single.removesuffix(f'.{kind}')}.{kind}.index.json").is_file():
            yield from _of_index(index)


def read_object(file: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file. Raises `FileFormatError` where transformers would not read it."""
    if first_bytes(file).startswith(_MARKS):
        raise FileFormatError(
            f"{file} begins with a byte-order mark, which transformers does not read. Save it as UTF-8 without one."
        )
    return read_settings(file)


def _of_values(config: dict[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        if key not in _RULES or value is None:
            continue
        fits, expected = _RULES[key]
        if fits is _ACTIVATION[0] and "auto_map" in config:  # the model's own code may know it
            continue
        if not fits(value):
            close = get_close_matches(str(value), ACT2FN if fits is _ACTIVATION[0] else (), n=3)
            hint = f", such as {', '.join(close or ('silu', 'gelu'))}" if fits is _ACTIVATION[0] else ""
            yield f"{key} is {shown(value)}; expected {expected}{hint}."
    heads, shared = (_size(config, key) for key in ("num_attention_heads", "num_key_value_heads"))
    if heads and shared and heads % shared:
        yield f"num_key_value_heads is {shared}; expected a divisor of num_attention_heads, {heads}."
    vocabulary, padding = (_size(config, key) for key in ("vocab_size", "pad_token_id"))
    if vocabulary and padding and padding >= vocabulary:
        yield f"pad_token_id is {padding}; expected less than vocab_size, {vocabulary}, or null."


def _size(config: dict[str, Any], key: str) -> int | None:
    return value if _is_size(value := config.get(key)) else None


def _of_index(index: Path) -> Iterator[str]:
    try:
        places = read_object(index).get("weight_map")
    except FileFormatError as error:
        yield str(error)
        return
    if not isinstance(places, dict) or not places or not all(isinstance(each, str) for each in places.values()):
        yield (
            f"{index}: weight_map is {shown(places)}; expected an object of every tensor's name with the file that "
            "holds it. Get the file again."
        )
        return
    names = sorted(set(places.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        yield (
            f"{index} names files that are not there ({len(missing)} of {len(names)}, such as {missing[0]}): "
            "the checkpoint is corrupt or incomplete. Get them again."
        )
    for name in names:
        yield from _of_weights(index.parent / name)


def _of_weights(file: Path) -> Iterator[str]:
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            yield f"{file} is corrupt or incomplete (safetensors says: {error}). Get the file again."
    elif not first_bytes(file).startswith(_PICKLED):
        yield (
            f"{file} is no file of PyTorch's: it begins with {first_bytes(file)!r}. Get the file again, or better "
            "a checkpoint with safetensors weights."
        )
    elif not _holds_tensors(file):
        yield (
            f"{file} is damaged, or holds other things than tensors by their names, which PyTorch does not read. "
            "Get the file again, or better a checkpoint with safetensors weights."
        )


def _holds_tensors(file: Path) -> bool:
    try:
        return isinstance(torch.load(file, map_location="meta", weights_only=True), dict)
    except Exception:  # of a file that is damaged in any way
        return False
