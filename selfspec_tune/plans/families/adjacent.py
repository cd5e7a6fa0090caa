"""Helium and ERNIE 4.5: Llama with rotary positions of adjacent pairs."""

from __future__ import annotations

from selfspec_tune.plans.attention import AttentionPlan, RopePairs, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config


def helium(config: Config) -> DecoderPlan:
    """Norm weights are applied in float32."""
    rope = RopePlan(table="full", size=llama.head_size(config), pairs=RopePairs.ADJACENT)
    before, between, last = (
        llama.norm(config, path, is_late=True) for path in ("input_layernorm", "post_attention_layernorm", "model.norm")
    )
    return llama.alike(
        config, llama.attention(config, norm=before, rope=rope), llama.mlp(config, norm=between), norm=last
    )


def ernie4_5(config: Config) -> DecoderPlan:
    """Rotated in float32."""
    return llama.alike(config, _ernie_attention(config), llama.mlp(config))


def ernie4_5_moe(config: Config) -> DecoderPlan:
    """ERNIE 4.5 with experts in a range of layers; routers by softmax, with a bias on the choice."""
    router = mixture.softmax_router(
        is_float32=True,
        choice_bias="mlp.gate.moe_statics.e_score_correction_bias",
        renormalise=True,
        least_sum=config["moe_norm_min"],
    )
    width = config["moe_intermediate_size"]
    experts = mixture.experts(
        config,
        router,
        count=config["moe_num_experts"],
        chosen=config["moe_k"],
        width=width,
        shared=mixture.shared(config, "mlp.shared_experts", width * config["moe_num_shared_experts"]),
    )
    first, last, step = (config[f"moe_layer_{name}"] for name in ("start_index", "end_index", "interval"))
    attention = _ernie_attention(config)
    return mixture.layered(
        config,
        lambda _: attention,
        lambda layer: experts if first <= layer <= last and (layer + 1) % step == 0 else None,
    )


def _ernie_attention(config: Config) -> AttentionPlan:
    rope = RopePlan(table="full", size=llama.head_size(config), pairs=RopePairs.ADJACENT, in_float32=True)
    return llama.attention(config, rope=rope)
