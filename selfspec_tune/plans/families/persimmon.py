"""Persimmon."""

from __future__ import annotations

from selfspec_tune.plans.attention import QkNormKind, QkNormPlan, RopePlan, WeightOrder
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def persimmon(config: Config) -> DecoderPlan:
    """LayerNorm, of queries and keys too; rope over a part of a head; each head's query, key and value in a row."""
    epsilon = config["layer_norm_eps"]
    size = config["hidden_size"] // config["num_attention_heads"]
    before, between, last, query, key = (
        llama.layer_norm(path, epsilon)
        for path in (
            "input_layernorm",
            "post_attention_layernorm",
            "model.final_layernorm",
            "self_attn.q_layernorm",
            "self_attn.k_layernorm",
        )
    )
    attention = llama.attention(
        config,
        norm=before,
        num_kv_heads=config["num_attention_heads"],
        head_size=size,
        scale=size**-0.5,
        inputs=("self_attn.query_key_value",),
        output="self_attn.dense",
        order=WeightOrder.GROUPED,
        rope=RopePlan(table="full", size=llama.rope_size(config, size)),
        qk_norm=QkNormPlan(kind=QkNormKind.HEAD, query=query, key=key) if config["qk_layernorm"] else None,
    )
    mlp = llama.mlp(config, norm=between, inputs=("mlp.dense_h_to_4h",), output="mlp.dense_4h_to_h", is_gated=False)
    return llama.alike(config, attention, mlp, norm=last)
