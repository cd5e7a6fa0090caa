"""Flint and Kolibri: norms of queries and keys, windows with rotary positions, full layers without; experts."""

from __future__ import annotations

from functools import partial
from typing import Any

from selfspec_tune.plans.attention import AttentionPlan
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import Score


def flint(config: Config) -> DecoderPlan:
    """Attention sinks; some layers without experts."""
    norm = partial(llama.norm, config, is_late=True)
    norms = llama.qk_norm(config, query=norm("self_attn.q_norm"), key=norm("self_attn.k_norm"))
    between = norm("post_attention_layernorm")
    router = mixture.softmax_router(
        is_float32=True, score=Score.SIGMOID, renormalise=config["norm_topk_prob"], is_rounded=False
    )
    experts = mixture.experts(
        config,
        router,
        norm=between,
        width=config["moe_intermediate_size"],
        shared=mixture.shared(config, "mlp.shared_expert", config["shared_expert_intermediate_size"]),
    )
    return mixture.layered(
        config,
        lambda layer: _attention(config, layer, norm=norm("input_layernorm"), qk_norm=norms, sinks="self_attn.sinks"),
        lambda layer: experts if mixture.is_step(config, layer) else None,
        dense=llama.mlp(config, norm=between),
        norm=norm("model.norm"),
    )


def kolibri1(config: Config) -> DecoderPlan:
    """Norms after each sub-layer too; experts in every layer, chosen by their logits plus a bias."""
    router = mixture.sigmoid_router(is_chosen_first=True, renormalise=config["norm_topk_prob"], sum_epsilon=0.0)
    experts = mixture.experts(
        config,
        router,
        post=llama.norm(config, "post_mlp_layernorm"),
        width=config["moe_intermediate_size"],
        shared=mixture.shared(config, "mlp.shared_experts", config["shared_expert_intermediate_size"]),
    )
    post, norms = llama.norm(config, "post_self_attn_layernorm"), llama.qk_norm(config)
    return mixture.layered(config, lambda layer: _attention(config, layer, post=post, qk_norm=norms), lambda _: experts)


def _attention(config: Config, layer: int, **changes: Any) -> AttentionPlan:
    is_rotated = config["layer_types"][layer] == "sliding_attention" or config["sliding_window"] is None
    rope: dict[str, Any] = {} if is_rotated else {"rope": None}
    return llama.attention(config, reach=llama.reach(config, layer), **rope, **changes)
