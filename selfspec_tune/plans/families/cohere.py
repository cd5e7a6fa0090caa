"""Cohere's Command R and its successors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfspec_tune.plans.attention import AttentionPlan, QkNormKind, QkNormPlan, RopePairs, RopePlan
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, HeadPlan, LayerPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import Score
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


def cohere2_moe(config: Config) -> DecoderPlan:
    """Experts in most layers, whose mean with a shared MLP may be taken; RMSNorm where an epsilon of it is set."""
    norm = _norm(config, "input_layernorm")
    by_softmax, strategy = config["expert_selection_fn"] == "softmax", config["shared_expert_combination_strategy"]
    router = mixture.softmax_router(
        score=Score.SOFTMAX if by_softmax else Score.SIGMOID,
        is_chosen_first=True,
        renormalise=config["norm_topk_prob"] and not by_softmax,
    )
    shared = mixture.shared(config, "mlp.shared_experts", config["intermediate_size"] * config["num_shared_experts"])
    is_mean = shared is not None and strategy == "average"
    experts = mixture.experts(config, router, norm=norm, shared=shared, residual_scale=0.5 if is_mean else 1.0)
    width = config["prefix_dense_intermediate_size"]
    dense = llama.mlp(config, norm=norm, width=config["intermediate_size"] if width is None else width)

    def layer(index: int) -> LayerPlan:
        is_dense = config["mlp_layer_types"][index] == "dense"
        is_window = config["layer_types"][index] == "sliding_attention"
        is_rotated = is_window or (is_dense and config["prefix_dense_sliding_window_pattern"] == 1)
        attention = llama.attention(
            config, norm=norm, rope=_rope(config) if is_rotated else None, reach=llama.reach(config, index)
        )
        return LayerPlan(attention=attention, mlp=dense if is_dense else experts, order=BlockOrder.PARALLEL)

    return llama.decoder(config, layer, norm=_norm(config, "model.norm"), head=HeadPlan(scale=config["logit_scale"]))


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
    epsilon = config.get("rms_norm_eps")
    return llama.layer_norm(path, config["layer_norm_eps"]) if epsilon is None else llama.norm(config, path)


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
