"""What a family's name stands for: settings of released checkpoints that decide what their plans need.

A family that is not listed has one row, its configuration class by default. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Settings = Mapping[str, Any]

LONG_ROPE: dict[str, Any] = {
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0] * 48,
        "long_factor": [2.0] * 48,
    },
}
_GRANITE = {
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
}
_ATTENTION_ALONE = {
    **_GRANITE,
    "layer_types": ["full_attention"] * 32,
    "num_local_experts": 0,
    "position_embedding_type": "rope",
}

VARIANTS: Mapping[str, Mapping[str, Settings]] = {
    "dots1": {"": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6}},
    "exaone4": {"": {"sliding_window": None, "layer_types": ["full_attention"] * 32}, "with windows": {}},
    "falcon": {
        "": {},
        "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 8},
        "ALiBi": {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    },
    "gpt_neox": {"": {}, "sequential": {"use_parallel_residual": False}},
    "granite": {"": _GRANITE},
    "granite_swa": {"": _GRANITE},
    "granitemoe": {"": _GRANITE},
    "granitemoehybrid": {"": _ATTENTION_ALONE},
    "granitemoeshared": {"": _GRANITE},
    "mistral": {"": {"sliding_window": None}, "with windows": {}},
    "mistral3": {"": {}, "Ministral": {"text_config": {"model_type": "ministral3"}}},
    "phi3": {"": {}, "with windows": {"sliding_window": 2047}, "long rope": LONG_ROPE},
    "stablelm": {"": {}, "parallel": {"use_parallel_residual": True, "qk_layernorm": True}},
}
"""By ``model_type``: a word for each variant, "" for the usual one, with its settings."""


def usual(model_type: str) -> Settings:
    """What released checkpoints of a family have otherwise than its configuration class."""
    return VARIANTS.get(model_type, {}).get("", {})


def variants(model_type: str) -> Iterator[tuple[str, Settings]]:
    """The rows of a family: a name to print, and the settings of its configuration."""
    for word, settings in VARIANTS.get(model_type, {"": {}}).items():
        yield (f"{model_type}, {word}" if word else model_type), settings
