"""OLMo 1 to 3 and FlexOlmo: rotary positions in float32. OLMoE is a Mixtral."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfspec_tune.plans.attention import AttentionPlan, QkNormKind, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan, LayerPlan
from selfspec_tune.plans.families import llama, mixture
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.norm import NormPlan


def olmo(config: Config) -> DecoderPlan:
    """LayerNorm without a weight; queries, keys and values clamped where asked for."""

    def norm(path: str) -> NormPlan:
        return llama.layer_norm(path, 1e-5, has_weight=False)

    attention = llama.attention(
        config, norm=norm("input_layernorm"), clip=config["clip_qkv"], rope=_rope(config, "full")
    )
    mlp = llama.mlp(config, norm=norm("post_attention_layernorm"))
    return llama.alike(config, attention, mlp, norm=norm("model.norm"))


def olmo2(config: Config) -> DecoderPlan:
    """Norms after each sub-layer instead of before; norms of queries and keys over their width."""
    return _post(config, lambda _: _attention(config, rope=_rope(config, "full")))


def olmo3(config: Config) -> DecoderPlan:
    """OLMo 2 with windows, and a table of rotary positions for each kind of layer."""

    def attention(layer: int) -> AttentionPlan:
        rope = _rope(config, config["layer_types"][layer])
        return _attention(config, rope=rope, reach=llama.reach(config, layer))

    return _post(config, attention, ropes=llama.ropes_by_type(config))


def flex_olmo(config: Config) -> DecoderPlan:
    """OLMo 2 with experts."""
    router = mixture.softmax_router(renormalise=config["norm_topk_prob"])
    experts = mixture.experts(config, router, norm=None, post=_norm(config, "post_feedforward_layernorm"))
    attention = _attention(config, rope=_rope(config, "full"))
    return mixture.layered(config, lambda _: attention, lambda _: experts, norm=_norm(config, "model.norm"))


def _rope(config: Config, table: str) -> RopePlan:
    return RopePlan(table=table, size=llama.head_size(config), in_float32=True)


def _norm(config: Config, path: str) -> NormPlan:
    return llama.norm(config, path, is_late=True)


def _attention(config: Config, **changes: Any) -> AttentionPlan:
    query, key = (_norm(config, f"self_attn.{name}") for name in ("q_norm", "k_norm"))
    norms = llama.qk_norm(config, kind=QkNormKind.WIDTH, query=query, key=key)
    post = _norm(config, "post_attention_layernorm")
    return llama.attention(config, norm=None, post=post, qk_norm=norms, **changes)


def _post(config: Config, attention: Callable[[int], AttentionPlan], **changes: Any) -> DecoderPlan:
    mlp = llama.mlp(config, norm=None, post=_norm(config, "post_feedforward_layernorm"))
    norm = _norm(config, "model.norm")
    return llama.decoder(config, lambda layer: LayerPlan(attention=attention(layer), mlp=mlp), norm=norm, **changes)
