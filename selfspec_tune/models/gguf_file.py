"""Loads a GGUF file as an ordinary, dequantised transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from selfspec_tune.errors import FileFormatError, UnsupportedModelError
from selfspec_tune.models.loading_output import quietly


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Model, tokenizer and one line of provenance.

    Raises:
        FileFormatError: the file is no GGUF file, or is truncated.
        UnsupportedModelError: transformers cannot read this architecture from GGUF.
    """
    provenance = f"gguf, dequantised, {gguf_file_type(path)}"
    folder, source = path.parent, {"gguf_file": path.name, "local_files_only": True}
    try:
        with quietly():
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **_dequantised(), **source)
            tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"The GGUF file {path} cannot be turned into a transformers model: {error} "
            "Give the original checkpoint's directory or hub id instead."
        ) from error
    return _as_plain(loaded), tokenizer, provenance


def gguf_file_type(path: Path) -> str:
    """The quantisation that a GGUF file states, such as "Q4_1".

    Raises:
        FileFormatError: the file is no GGUF file, or is truncated.
    """
    from gguf import GGUFReader, LlamaFileType

    try:
        field = GGUFReader(path).get_field("general.file_type")
        return LlamaFileType(field.contents()).name.removeprefix("MOSTLY_") if field else "unknown type"
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise FileFormatError(f"The file {path} is no complete GGUF file ({error}). Get it again.") from error


def _dequantised() -> dict[str, Any]:
    """Asks transformers to unpack the weights; releases that cannot keep them packed need no asking."""
    settings = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": settings(dequantize=True)} if settings else {}


def _as_plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not count as quantised, so that it can be saved and moved."""
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    with torch.device("meta"):  # no second copy of the weights
        plain = type(loaded)(type(loaded.config)(**config))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    for name, buffer in loaded.named_buffers(remove_duplicate=False):  # rotary: in no state dict
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, buffer)
    return plain
