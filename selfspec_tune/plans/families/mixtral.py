"""Mixtral, OLMoE and Aria: experts in every layer, routers by softmax."""

from __future__ import annotations

from selfspec_tune.plans.attention import QkNormKind
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import Activation


def mixtral(config: Config) -> DecoderPlan:
    """Mistral with experts; weights over their sum, in float32."""
    attention = llama.attention(config, reach=llama.window(config["sliding_window"]))
    experts = mixture.experts(config, mixture.softmax_router(renormalise=True, is_rounded=False))
    return mixture.layered(config, lambda _: attention, lambda _: experts)


def olmoe(config: Config) -> DecoderPlan:
    """Norms of queries and keys over their width, clamped behind them where asked for."""
    norms = llama.qk_norm(config, kind=QkNormKind.WIDTH)
    attention = llama.attention(config, qk_norm=norms, clip=config["clip_qkv"], is_clip_late=True)
    experts = mixture.experts(config, mixture.softmax_router(renormalise=config["norm_topk_prob"]))
    return mixture.layered(config, lambda _: attention, lambda _: experts)


def aria_text(config: Config) -> DecoderPlan:
    """Llama with transposed experts, of which the chosen ones alone are scored, beside a shared MLP."""
    width = config["intermediate_size"]
    experts = mixture.experts(
        config,
        mixture.softmax_router(weight="mlp.router.weight", is_chosen_first=True),
        count=config["moe_num_experts"],
        chosen=config["moe_topk"],
        activation=Activation.SILU,
        is_transposed=True,
        shared=mixture.shared(config, "mlp.shared_experts", width * config["moe_num_shared_experts"]),
    )
    attention = llama.attention(config)
    return mixture.layered(config, lambda _: attention, lambda _: experts)
