"""Mixtral and OLMoE: experts in every layer, routers by softmax."""

from __future__ import annotations

from selfspec_tune.plans.attention import QkNormKind
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config


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
