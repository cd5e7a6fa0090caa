"""Qwen 2 and 3, dense."""

from __future__ import annotations

from collections.abc import Callable

from selfspec_tune.plans.attention import AttentionPlan, QkNormKind, QkNormPlan, Reach, ReachKind
from selfspec_tune.plans.decoder import DecoderPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def qk_norm(config: Config) -> QkNormPlan:
    """RMSNorm of each head's query and key, by one weight for all heads."""
    query, key = (llama.norm(config, f"self_attn.{name}") for name in ("q_norm", "k_norm"))
    return QkNormPlan(kind=QkNormKind.HEAD, query=query, key=key)


def window(config: Config, layer: int) -> Reach:
    """By ``layer_types`` and ``sliding_window``."""
    is_window = config["layer_types"][layer] == "sliding_attention" and config.get("sliding_window")
    return Reach(ReachKind.WINDOW, config["sliding_window"]) if is_window else Reach()


def qwen2(config: Config) -> DecoderPlan:
    """Biases on queries, keys and values; windows in later layers where asked for."""
    return _decoder(config, lambda layer: llama.attention(config, reach=window(config, layer)))


def qwen3(config: Config) -> DecoderPlan:
    """Norms of queries and keys."""
    norms = qk_norm(config)
    return _decoder(config, lambda layer: llama.attention(config, reach=window(config, layer), qk_norm=norms))


def _decoder(config: Config, attention: Callable[[int], AttentionPlan]) -> DecoderPlan:
    llama.check_static_rope(config.get("rope_parameters") or {})
    mlp = llama.mlp(config)
    return llama.decoder(config, lambda layer: LayerPlan(attention=attention(layer), mlp=mlp))
