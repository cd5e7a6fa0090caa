"""Qwen 2 and 3, dense."""

from __future__ import annotations

from typing import Any

from selfspec_tune.plans.decoder import DecoderPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def qwen2(config: Config) -> DecoderPlan:
    """Biases on queries, keys and values; windows in later layers where asked for."""
    return by_layer(config)


def qwen3(config: Config) -> DecoderPlan:
    """Norms of queries and keys."""
    return by_layer(config, qk_norm=llama.qk_norm(config))


def by_layer(config: Config, **changes: Any) -> DecoderPlan:
    """Llama with windows in the layers that ``layer_types`` names, and ``changes`` of its attentions."""
    mlp = llama.mlp(config)
    return llama.decoder(
        config,
        lambda layer: LayerPlan(
            attention=llama.attention(config, reach=llama.reach(config, layer), **changes), mlp=mlp
        ),
    )
