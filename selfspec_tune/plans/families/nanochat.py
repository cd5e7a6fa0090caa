"""nanochat."""

from __future__ import annotations

from dataclasses import replace

from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan, HeadPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def nanochat(config: Config) -> DecoderPlan:
    """Norms without a weight, one after the embedding and those of queries and keys after rope, which turns back."""
    before, between, last, query, key = (
        llama.norm(config, path, has_weight=False)
        for path in (
            "input_layernorm",
            "post_attention_layernorm",
            "model.norm",
            "self_attn.q_norm",
            "self_attn.k_norm",
        )
    )
    attention = llama.attention(
        config, norm=before, qk_norm=llama.qk_norm(config, query=query, key=key, is_after_rope=True)
    )
    mlp = llama.mlp(config, norm=between, inputs=("mlp.fc1",), output="mlp.fc2", is_gated=False)
    return llama.alike(
        config,
        attention,
        mlp,
        embedding=EmbeddingPlan(path="model.embed_tokens", norm=last),
        norm=last,
        head=HeadPlan(cap=config["final_logit_softcapping"]),
        ropes={"full": replace(llama.rope_table(config), is_reversed=True)},
    )
