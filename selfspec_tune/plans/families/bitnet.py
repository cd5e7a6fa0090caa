"""BitNet with unpacked weights."""

from __future__ import annotations

from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def bitnet(config: Config) -> DecoderPlan:
    """Norms before both output layers."""
    attention = llama.attention(config, inner=llama.norm(config, "self_attn.attn_sub_norm"))
    return llama.alike(config, attention, llama.mlp(config, inner=llama.norm(config, "mlp.ffn_sub_norm")))
