"""Tiny configurations of every family that has a plan, with no setting at its default: rows of one table of tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """``config``: for ``AutoConfig.for_model``, ``model_type`` among it. ``notes``: what a reader should know."""

    config: dict[str, Any]
    notes: str = ""


HIDDEN = 32
# What all rows have in common; a row may say otherwise.
SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 1024,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_ROPE = {"rope_type": "default", "rope_theta": 5e3}
_YARN = {"rope_type": "yarn", "rope_theta": 5e3, "factor": 4.0, "original_max_position_embeddings": 256}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        {**SIZES, "model_type": "llama", "head_dim": 16, "rms_norm_eps": 1e-3, "attention_bias": True, "mlp_bias": True}
        | {"rope_parameters": _YARN, "tie_word_embeddings": True}
    ),
    "qwen2": Family(
        {**SIZES, "model_type": "qwen2", "rms_norm_eps": 1e-3, "rope_parameters": _ROPE, "use_sliding_window": True}
        | {"sliding_window": 8, "num_hidden_layers": 3, "max_window_layers": 2}
    ),
    "qwen3": Family(
        {**SIZES, "model_type": "qwen3", "head_dim": 16, "rms_norm_eps": 1e-3, "attention_bias": True}
        | {"rope_parameters": _ROPE}
    ),
}
"""By a name: a family, or a variant of one."""
