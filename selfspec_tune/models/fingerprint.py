"""A short hash that tells two models apart, wherever their files lie.

It covers what the architecture computes (the configuration without bookkeeping)
and strided samples of every weight, rounded to bfloat16.  The rounding makes it
the same for one checkpoint loaded in float32 and in bfloat16; float16 agrees
too unless a sampled weight is too small for it.  What is not sampled is not covered:
two checkpoints that differ in few values only may have the same fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

SAMPLES_PER_WEIGHT = 64

# Bookkeeping, defaults for generation and run-time choices: none changes the logits of a forward pass.
_VOLATILE_KEY = re.compile(
    r"^_|_token_id$|^(transformers_version|architectures|auto_map|dtype|torch_dtype|quantization_config|"
    r"use_cache|pretraining_tp|initializer_range|id2label|label2id|chunk_size_feed_forward|return_dict|"
    r"output_hidden_states|output_attentions|problem_type|is_local|local_files_only|max_window_layers|"
    r".*_dropout|.*_pdrop|.*dropout)$"
)


def fingerprint(model: PreTrainedModel, read: Callable[[str], torch.Tensor] | None = None) -> str:
    """16 hexadecimal digits over the model's configuration and sampled weights.

    With ``read``, which gives a weight by its name, ``model`` may be an empty one.
    """
    digest = hashlib.sha256(_canonical_config(model).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(_sample(parameter if read is None else read(name)))
    if getattr(model, "is_quantized", False):  # what is packed lies in buffers, and means nothing without its settings
        digest.update(json.dumps(model.config.to_dict()["quantization_config"], sort_keys=True, default=str).encode())
        for name, buffer in sorted(model.named_buffers()):
            digest.update(f"{name}{tuple(buffer.shape)}".encode())
            digest.update(_sample(buffer))
    return digest.hexdigest()[:16]


def _canonical_config(model: PreTrainedModel) -> str:
    return json.dumps(_without_volatile(model.config.to_diff_dict()), sort_keys=True, default=str)


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_volatile(v) for k, v in value.items() if not _VOLATILE_KEY.search(str(k))}
    return float(f"{value:.6g}") if isinstance(value, float) else value  # GGUF stores float32


def _sample(parameter: torch.Tensor) -> bytes:
    """At most SAMPLES_PER_WEIGHT values, evenly strided over the flattened weight, as bytes."""
    flat = parameter.detach().reshape(-1)
    stride = max(1, -(-flat.numel() // SAMPLES_PER_WEIGHT))
    sample = flat[::stride].to("cpu", torch.bfloat16)
    return sample.view(torch.int16).numpy().astype("<i2").tobytes()
