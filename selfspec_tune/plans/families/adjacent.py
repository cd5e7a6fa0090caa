"""Helium and ERNIE 4.5, dense: Llama with rotary positions of adjacent pairs."""

from __future__ import annotations

from selfspec_tune.plans.attention import RopePairs, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def helium(config: Config) -> DecoderPlan:
    """Norm weights are applied in float32."""
    rope = RopePlan(table="full", size=llama.head_size(config), pairs=RopePairs.ADJACENT)
    before, between, last = (
        llama.norm(config, path, is_late=True) for path in ("input_layernorm", "post_attention_layernorm", "model.norm")
    )
    return llama.alike(
        config, llama.attention(config, norm=before, rope=rope), llama.mlp(config, norm=between), norm=last
    )


def ernie4_5(config: Config) -> DecoderPlan:
    """Rotated in float32."""
    rope = RopePlan(table="full", size=llama.head_size(config), pairs=RopePairs.ADJACENT, in_float32=True)
    return llama.alike(config, llama.attention(config, rope=rope), llama.mlp(config))
