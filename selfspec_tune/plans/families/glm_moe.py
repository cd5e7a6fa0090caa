"""Mixtures with routers by sigmoid and a bias on the choice: GLM 4.5, Solar, dots, EXAONE, MiniMax M2, Hunyuan 3."""

from __future__ import annotations

from typing import Any

from selfspec_tune.plans.attention import AttentionPlan, QkNormKind
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import ExpertsPlan


def glm4_moe(config: Config) -> DecoderPlan:
    """Rope over a part of a head; norms of queries and keys where asked for; first layers without experts.

    sarvam_moe loads as it.
    """
    norms = llama.qk_norm(config) if config["use_qk_norm"] else None
    attention = llama.attention(config, rope=llama.partial_rope(config), qk_norm=norms)
    experts = _grouped(config, config["n_shared_experts"])
    return mixture.layered(config, lambda _: attention, lambda layer: experts if _is_late(config, layer) else None)


def solar_open(config: Config) -> DecoderPlan:
    """Experts in every layer."""
    llama.check_whole_rope(config["rope_parameters"])
    attention = llama.attention(config)
    experts = _grouped(config, config["n_shared_experts"])
    return mixture.layered(config, lambda _: attention, lambda _: experts)


def dots1(config: Config) -> DecoderPlan:
    """Norms of queries and keys; windows by layer; first layers without experts."""
    norms, experts = llama.qk_norm(config), _grouped(config, config["n_shared_experts"])
    return mixture.layered(
        config,
        lambda layer: llama.attention(config, qk_norm=norms, reach=llama.reach(config, layer)),
        lambda layer: experts if _is_late(config, layer) else None,
    )


def exaone_moe(config: Config) -> DecoderPlan:
    """Norms of queries and keys; where a window is set, layers have either it or no rotary positions."""
    norms, experts = llama.qk_norm(config), _grouped(config, config["num_shared_experts"])

    def attention(layer: int) -> AttentionPlan:
        is_window = config["layer_types"][layer] == "sliding_attention"
        rope: dict[str, Any] = {} if is_window or config["sliding_window"] is None else {"rope": None}
        return llama.attention(config, qk_norm=norms, reach=llama.reach(config, layer), **rope)

    return mixture.layered(
        config, attention, lambda layer: experts if config["mlp_layer_types"][layer] == "sparse" else None
    )


def minimax_m2(config: Config) -> DecoderPlan:
    """Norms of queries and keys over their width; rope over a part of a head; logits of routers in the type."""
    norms = llama.qk_norm(config, kind=QkNormKind.WIDTH)
    attention = llama.attention(config, rope=llama.partial_rope(config), qk_norm=norms)
    router = mixture.sigmoid_router(choice_bias="mlp.e_score_correction_bias", is_float32=False, sum_epsilon=0.0)
    experts = mixture.experts(config, router)
    return mixture.layered(config, lambda _: attention, lambda _: experts)


def hy_v3(config: Config) -> DecoderPlan:
    """Norms of queries and keys. Its sum of experts in float32 rounds to what one in the type does."""
    attention = llama.attention(config, qk_norm=llama.qk_norm(config))
    router = mixture.sigmoid_router(choice_bias="mlp.e_score_correction_bias", scale=config["router_scaling_factor"])
    width = config["moe_intermediate_size"]
    beside = width * config["num_shared_experts"] or config["intermediate_size"]
    experts = mixture.experts(config, router, width=width, shared=mixture.shared(config, "mlp.shared_experts", beside))
    return mixture.layered(
        config,
        lambda _: attention,
        lambda layer: experts if config["mlp_layer_types"][layer] == "sparse" else None,
    )


def _grouped(config: Config, shared: int) -> ExpertsPlan:
    width = config["moe_intermediate_size"]
    beside = mixture.shared(config, "mlp.shared_experts", width * shared)
    return mixture.experts(config, mixture.grouped_router(config), width=width, shared=beside)


def _is_late(config: Config, layer: int) -> bool:
    is_late: bool = layer >= config["first_k_dense_replace"]
    return is_late
