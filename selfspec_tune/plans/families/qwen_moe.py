"""Qwen 2 and 3 and Mellum with experts: some layers without them, routers by softmax."""

from __future__ import annotations

from typing import Any

from selfspec_tune.plans.attention import AttentionPlan, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import ExpertsPlan


def qwen2_moe(config: Config) -> DecoderPlan:
    """A shared expert with a gate; windows by layer."""
    experts = _experts(
        config,
        shared=mixture.shared(config, "mlp.shared_expert", config["shared_expert_intermediate_size"]),
        shared_gate="mlp.shared_expert_gate",
    )
    return mixture.layered(
        config,
        lambda layer: llama.attention(config, reach=llama.reach(config, layer)),
        lambda layer: experts if mixture.is_step(config, layer) else None,
    )


def qwen3_moe(config: Config) -> DecoderPlan:
    """Norms of queries and keys; one window for all layers, or none."""
    experts = _experts(config)
    attention = llama.attention(config, qk_norm=llama.qk_norm(config), reach=llama.window(config["sliding_window"]))
    return mixture.layered(
        config, lambda _: attention, lambda layer: experts if mixture.is_step(config, layer) else None
    )


def mellum(config: Config) -> DecoderPlan:
    """Qwen 3 with windows, and a table of rotary positions for each kind of layer."""
    norms, experts = llama.qk_norm(config), _experts(config)

    def attention(layer: int) -> AttentionPlan:
        kind = config["layer_types"][layer]
        llama.check_whole_rope(config["rope_parameters"][kind])
        rope = RopePlan(table=kind, size=llama.head_size(config))
        return llama.attention(config, qk_norm=norms, rope=rope, reach=llama.reach(config, layer))

    return mixture.layered(
        config,
        attention,
        lambda layer: experts if config["mlp_layer_types"][layer] == "sparse" else None,
        ropes=llama.ropes_by_type(config),
    )


def _experts(config: Config, **changes: Any) -> ExpertsPlan:
    router = mixture.softmax_router(renormalise=config["norm_topk_prob"])
    return mixture.experts(config, router, width=config["moe_intermediate_size"], **changes)
