"""Mistral and Ministral, dense; and CWM, whose layers are Ministral's."""

from __future__ import annotations

from selfspec_tune.plans.attention import GrowthPlan
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, qwen
from selfspec_tune.plans.families.llama import Config


def mistral(config: Config) -> DecoderPlan:
    """One window for all layers, or none."""
    attention = llama.attention(config, reach=llama.window(config["sliding_window"]))
    return llama.alike(config, attention, llama.mlp(config))


def ministral(config: Config) -> DecoderPlan:
    """ministral and cwm: windows by layer."""
    return qwen.by_layer(config)


def ministral3(config: Config) -> DecoderPlan:
    """Mistral's; queries grow with their position."""
    rope = config["rope_parameters"]
    growth = GrowthPlan(beta=rope["llama_4_scaling_beta"], length=rope["original_max_position_embeddings"])
    attention = llama.attention(config, reach=llama.window(config["sliding_window"]), growth=growth)
    return llama.alike(config, attention, llama.mlp(config))
