"""GLM 4, dense: rotary positions of adjacent pairs over half a head."""

from __future__ import annotations

from typing import Any

from selfspec_tune.plans.attention import RopePairs, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def glm(config: Config) -> DecoderPlan:
    """Weights of gate and up in one."""
    return _decoder(config)


def glm4(config: Config) -> DecoderPlan:
    """Norms after each sub-layer too."""
    return _decoder(config, "post_self_attn_layernorm", "post_mlp_layernorm")


def _decoder(config: Config, *post: str) -> DecoderPlan:
    after: list[dict[str, Any]] = [{"post": llama.norm(config, path)} for path in post] or [{}, {}]
    size = llama.rope_size(config, llama.head_size(config))
    rope = RopePlan(table="full", size=size, pairs=RopePairs.ADJACENT)
    attention = llama.attention(config, rope=rope, **after[0])
    return llama.alike(config, attention, llama.mlp(config, inputs=("mlp.gate_up_proj",), **after[1]))
