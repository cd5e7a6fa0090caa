"""What is wrong with a checkpoint's files, looked for where transformers failed on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from selfspec_tune.checks import shown
from selfspec_tune.errors import FileFormatError
from selfspec_tune.models.generation_settings import FILE as GENERATION
from selfspec_tune.models.generation_settings import faults_of
from selfspec_tune.models.model_files import (
    FLAG,
    OBJECT,
    POSITIVE,
    SIZE,
    TEXT,
    TEXTS,
    TOKEN,
    Rule,
    by_key,
    first_bytes,
    is_whole,
    read_object,
    unfit,
)

_OBJECTS = ("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", GENERATION)
_INDICES = {"model.safetensors": "safetensors", "pytorch_model.bin": "bin"}  # the one file, if it is not in parts
_PICKLED = (b"PK", b"\x80")  # a zip archive, as torch writes today, or a bare pickle
_DTYPES = {name for name, value in vars(torch).items() if isinstance(value, torch.dtype) and value.is_floating_point}
_PARTS = ("text_config", "rope_parameters", "rope_scaling")
_REMEDY = "Mend it there, or get the file again."


def _is_dtype(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.removeprefix("torch.") in _DTYPES | {"auto"})


_DTYPE: Rule = (_is_dtype, f"one of {', '.join(sorted(_DTYPES & {'float32', 'float16', 'bfloat16'}))}")
_ACTIVATION: Rule = (lambda value: isinstance(value, str) and value in ACT2FN, "a function that transformers knows")

_ROPE: Rule = (lambda value: value in ("default", *ROPE_INIT_FUNCTIONS), f"one of {', '.join(ROPE_INIT_FUNCTIONS)}")

# By their kind, what the keys of config.json hold; null is left to transformers.
_KINDS: Mapping[Rule, tuple[str, ...]] = {
    SIZE: (
        *("hidden_size", "n_embd", "d_model", "vocab_size", "intermediate_size", "moe_intermediate_size", "head_dim"),
        *("num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads", "sliding_window"),
        *("max_position_embeddings", "n_positions", "num_local_experts", "num_experts_per_tok"),
        *("original_max_position_embeddings", "n_routed_experts", "num_layers", "num_heads", "n_heads", "n_layers"),
        *("num_kv_heads", "window_size", "attention_chunk_size", "ffn_dim"),
    ),
    POSITIVE: (
        "rms_norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_eps",
        "norm_epsilon",
        "rope_theta",
        "factor",
    ),
    FLAG: ("tie_word_embeddings", "use_cache", "attention_bias", "mlp_bias", "use_sliding_window"),
    OBJECT: ("quantization_config", "rope_parameters", "rope_scaling", "text_config", "auto_map"),
    TEXT: ("model_type",),
    TEXTS: ("architectures", "layer_types"),
    TOKEN: ("bos_token_id", "eos_token_id", "pad_token_id"),
    _DTYPE: ("dtype", "torch_dtype"),
    _ROPE: ("rope_type", "type"),
    _ACTIVATION: ("hidden_act", "hidden_activation", "activation_function", "activation"),
}
_RULES = by_key(_KINDS)


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
    yield from (f"{folder / GENERATION}: {fault}. {_REMEDY}" for fault in faults_of(read.get(GENERATION, {})))
    if "tokenizer.json" in read and not isinstance(read["tokenizer.json"].get("model"), dict):
        yield f"{folder / 'tokenizer.json'} has no object `model`, so it is no tokenizer's. Get the file again."
    for single, kind in _INDICES.items():
        if (folder / single).is_file():
            yield from _of_weights(folder / single)
        elif (index := folder / f"{single.removesuffix(f'.{kind}')}.{kind}.index.json").is_file():
            yield from _of_index(index)


def _of_values(config: dict[str, Any]) -> Iterator[str]:
    for key, fault in unfit(config, _RULES):
        if _RULES[key] is not _ACTIVATION:
            yield f"{fault}."
        elif "auto_map" not in config:  # else the model's own code may know it
            yield f"{fault}, such as {', '.join(get_close_matches(str(config[key]), ACT2FN) or ('silu', 'gelu'))}."
    heads, shared = (_size(config, key) for key in ("num_attention_heads", "num_key_value_heads"))
    if heads and shared and heads % shared:
        yield f"num_key_value_heads is {shared}; expected a divisor of num_attention_heads, {heads}."
    vocabulary, padding = (_size(config, key) for key in ("vocab_size", "pad_token_id"))
    if vocabulary and padding and padding >= vocabulary:
        yield f"pad_token_id is {padding}; expected less than vocab_size, {vocabulary}, or null."


def _size(config: dict[str, Any], key: str) -> int | None:
    return value if is_whole(value := config.get(key), 1) else None


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
