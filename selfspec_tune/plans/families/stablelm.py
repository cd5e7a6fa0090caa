"""StableLM: LayerNorm, rope over a part of a head, and in the largest both sub-layers side by side."""

from __future__ import annotations

from selfspec_tune.plans.attention import QkNormKind, QkNormPlan, RopePlan
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def stablelm(config: Config) -> DecoderPlan:
    """Norms of queries and keys have a module for each head."""
    epsilon = config["layer_norm_eps"]
    size = config["hidden_size"] // config["num_attention_heads"]
    norms = None
    if config["qk_layernorm"]:
        query, key = (llama.layer_norm(f"self_attn.{name}_layernorm.norms", epsilon) for name in "qk")
        norms = QkNormPlan(kind=QkNormKind.EACH_HEAD, query=query, key=key)
    before = llama.layer_norm("input_layernorm", epsilon)
    is_parallel = config["use_parallel_residual"]
    attention = llama.attention(
        config,
        norm=before,
        head_size=size,
        scale=size**-0.5,
        rope=RopePlan(table="full", size=llama.rope_size(config, size)),
        qk_norm=norms,
    )
    between = before if is_parallel else llama.layer_norm("post_attention_layernorm", epsilon)
    layer = LayerPlan(
        attention=attention,
        mlp=llama.mlp(config, norm=between),
        order=BlockOrder.PARALLEL if is_parallel else BlockOrder.SEQUENTIAL,
    )
    return llama.decoder(config, lambda _: layer, norm=llama.layer_norm("model.norm", epsilon))
