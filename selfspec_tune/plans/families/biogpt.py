"""BioGPT."""

from __future__ import annotations

from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan, HeadPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config

_EPSILON = 1e-5  # torch's own: its ``layer_norm_eps`` is never passed on


def biogpt(config: Config) -> DecoderPlan:
    """LayerNorm, learned positions from row 2 on, scaled embeddings, and a plain MLP that lies in the layer itself."""
    heads = config["num_attention_heads"]
    before, between, last = (
        llama.layer_norm(path, _EPSILON) for path in ("self_attn_layer_norm", "final_layer_norm", "biogpt.layer_norm")
    )
    size = config["hidden_size"] // heads
    attention = llama.attention(
        config,
        norm=before,
        head_size=size,
        scale=size**-0.5,
        num_kv_heads=heads,
        output="self_attn.out_proj",
        rope=None,
    )
    mlp = llama.mlp(config, silence=("fc2",), norm=between, inputs=("fc1",), output="fc2", is_gated=False)
    embedding = EmbeddingPlan(
        path="biogpt.embed_tokens",
        scale=config["hidden_size"] ** 0.5 if config["scale_embedding"] else 1.0,
        is_scale_rounded=False,
        positions="biogpt.embed_positions",
        offset=2,
    )
    return llama.alike(
        config,
        attention,
        mlp,
        at="biogpt",
        embedding=embedding,
        norm=last,
        head=HeadPlan(path="output_projection"),
        ropes={},
    )
