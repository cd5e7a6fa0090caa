"""OPT."""

from __future__ import annotations

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.norm import NormPlan

_EPSILON = 1e-5  # torch's own


def opt(config: Config) -> DecoderPlan:
    """LayerNorm, learned positions from row 2 on, and a plain MLP that lies in the layer itself."""
    if not config["do_layer_norm_before"]:
        raise UnsupportedModelError("its norms are on the stream itself (do_layer_norm_before is false)")
    if config["word_embed_proj_dim"] not in (None, config["hidden_size"]):
        raise UnsupportedModelError("its embeddings have another width than its layers (word_embed_proj_dim)")

    def norm(path: str) -> NormPlan:
        return llama.layer_norm(path, _EPSILON, has_weight=config["layer_norm_elementwise_affine"])

    attention = llama.attention(
        config,
        norm=norm("self_attn_layer_norm"),
        head_size=config["hidden_size"] // config["num_attention_heads"],
        num_kv_heads=config["num_attention_heads"],
        output="self_attn.out_proj",
        rope=None,
    )
    mlp = llama.mlp(
        config,
        silence=("fc2",),
        norm=norm("final_layer_norm"),
        width=config["ffn_dim"],
        inputs=("fc1",),
        output="fc2",
        is_gated=False,
        activation=llama.activation(config["activation_function"]),
    )
    layer = LayerPlan(attention=attention, mlp=mlp)
    at = "model.decoder"
    embedding = EmbeddingPlan(path=f"{at}.embed_tokens", positions=f"{at}.embed_positions", offset=2)
    last = None if config.get("_remove_final_layer_norm") else norm(f"{at}.final_layer_norm")
    return llama.decoder(config, lambda _: layer, at=at, embedding=embedding, norm=last, ropes={})
