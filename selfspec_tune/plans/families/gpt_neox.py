"""GPT-NeoX and Pythia."""

from __future__ import annotations

from functools import partial

from selfspec_tune.plans.attention import WeightOrder
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, EmbeddingPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def gpt_neox(config: Config) -> DecoderPlan:
    """Attention and plain MLP, mostly side by side, each after a LayerNorm; weights by head; heads rotated in part."""
    norm = partial(llama.layer_norm, epsilon=config["layer_norm_eps"])
    size = config["hidden_size"] // config["num_attention_heads"]
    attention = llama.attention(
        config,
        silence=("attention",),
        norm=norm("input_layernorm"),
        num_kv_heads=config["num_attention_heads"],
        head_size=size,
        scale=size**-0.5,
        inputs=("attention.query_key_value",),
        output="attention.dense",
        order=WeightOrder.GROUPED,
        rope=llama.partial_rope(config),
    )
    mlp = llama.mlp(
        config,
        norm=norm("post_attention_layernorm"),
        inputs=("mlp.dense_h_to_4h",),
        output="mlp.dense_4h_to_h",
        is_gated=False,
    )
    order = BlockOrder.PARALLEL if config["use_parallel_residual"] else BlockOrder.SEQUENTIAL
    layer = LayerPlan(attention=attention, mlp=mlp, order=order)
    embedding, last = EmbeddingPlan(path="gpt_neox.embed_in"), norm("gpt_neox.final_layer_norm")
    return llama.decoder(config, lambda _: layer, at="gpt_neox", embedding=embedding, norm=last)
