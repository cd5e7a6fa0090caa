"""Cohere's Command R and its successors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfspec_tune.plans.attention import AttentionPlan, QkNormKind, QkNormPlan, RopePairs, RopePlan
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, HeadPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.norm import NormPlan


def cohere(config: Config) -> DecoderPlan:
    """Attention and MLP side by side after one LayerNorm without bias; each head may have norms of its own."""
    query, key = (_norm(config, f"self_attn.{name}") for name in ("q_norm", "k_norm"))
    norms = QkNormPlan(kind=QkNormKind.EACH_HEAD, query=query, key=key) if config["use_qk_norm"] else None
    attention = llama.attention(config, norm=_norm(config, "input_layernorm"), rope=_rope(config), qk_norm=norms)
    return _decoder(config, lambda _: attention)


def cohere2(config: Config) -> DecoderPlan:
    """Windows with rotary positions, and full attentions without."""

    def attention(layer: int) -> AttentionPlan:
        is_window = config["layer_types"][layer] == "sliding_attention"
        return llama.attention(
            config,
            norm=_norm(config, "input_layernorm"),
            rope=_rope(config) if is_window else None,
            reach=llama.reach(config, layer),
        )

    return _decoder(config, attention)


def cohere_compass_text(config: Config) -> DecoderPlan:
    """Each kind of layer has rotary positions of its own, or none. The axes of an image are one axis in text."""
    ropes = llama.ropes_by_type(config)

    def attention(layer: int) -> AttentionPlan:
        kind = config["layer_types"][layer]
        return llama.attention(
            config,
            norm=_norm(config, "input_layernorm"),
            rope=RopePlan(table=kind, size=llama.head_size(config)) if kind in ropes else None,
            reach=llama.reach(config, layer),
        )

    return _decoder(config, attention, ropes=ropes)


def _norm(config: Config, path: str) -> NormPlan:
    return llama.layer_norm(path, config["layer_norm_eps"])


def _rope(config: Config) -> RopePlan:
    return RopePlan(table="full", size=llama.head_size(config), pairs=RopePairs.ADJACENT, in_float32=True)


def _decoder(config: Config, attention: Callable[[int], AttentionPlan], **changes: Any) -> DecoderPlan:
    mlp = llama.mlp(config, norm=_norm(config, "input_layernorm"))
    return llama.decoder(
        config,
        lambda layer: LayerPlan(attention=attention(layer), mlp=mlp, order=BlockOrder.PARALLEL),
        norm=_norm(config, "model.norm"),
        head=HeadPlan(scale=1.0 if config["logit_scale"] is None else config["logit_scale"]),
        **changes,
    )
