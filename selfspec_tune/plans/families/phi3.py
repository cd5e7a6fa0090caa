"""Phi 3 and 4: weights of queries, keys and values in one, of gate and up in one."""

from __future__ import annotations

from selfspec_tune.plans.attention import RopePlan, WeightOrder
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def phi3(config: Config) -> DecoderPlan:
    """One window for all layers, or none; rope over a part of a head, and for a first length alone, where asked for."""
    size = llama.head_size(config)
    attention = llama.attention(
        config,
        inputs=("self_attn.qkv_proj",),
        order=WeightOrder.STACKED,
        rope=RopePlan(table="full", size=llama.rope_size(config, size)),
        reach=llama.window(config["sliding_window"]),
    )
    return llama.alike(config, attention, llama.mlp(config, inputs=("mlp.gate_up_proj",)))
