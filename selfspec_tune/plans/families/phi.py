"""Phi 1 and 2."""

from __future__ import annotations

from functools import partial

from selfspec_tune.plans.attention import QkNormKind, QkNormPlan
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def phi(config: Config) -> DecoderPlan:
    """Attention and plain MLP side by side after one LayerNorm; a part of each head is rotated."""
    norm = partial(llama.layer_norm, epsilon=config["layer_norm_eps"])
    query, key = norm("self_attn.q_layernorm"), norm("self_attn.k_layernorm")
    attention = llama.attention(
        config,
        norm=norm("input_layernorm"),
        output="self_attn.dense",
        rope=llama.partial_rope(config),
        qk_norm=QkNormPlan(kind=QkNormKind.HEAD, query=query, key=key) if config["qk_layernorm"] else None,
    )
    mlp = llama.mlp(config, norm=attention.norm, inputs=("mlp.fc1",), output="mlp.fc2", is_gated=False)
    layer = LayerPlan(attention=attention, mlp=mlp, order=BlockOrder.PARALLEL)
    return llama.decoder(config, lambda _: layer, norm=norm("model.final_layernorm"))
