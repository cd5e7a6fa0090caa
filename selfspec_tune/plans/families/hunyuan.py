"""Hunyuan, dense."""

from __future__ import annotations

from selfspec_tune.plans.decoder import DecoderPlan, RopeTable
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def hunyuan_v1_dense(config: Config) -> DecoderPlan:
    """Norms of queries and keys after rope, which is static where it is called dynamic and ``alpha`` is set."""
    rope = config["rope_parameters"]
    if not (rope["rope_type"] == "dynamic" and rope.get("alpha")):
        llama.check_static_rope(rope)
    norms = llama.qk_norm(config, ("query_layernorm", "key_layernorm"), is_after_rope=True)
    ropes = {"full": RopeTable(module="model.rotary_emb")}
    return llama.alike(config, llama.attention(config, qk_norm=norms), llama.mlp(config), ropes=ropes)
