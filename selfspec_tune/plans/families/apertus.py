"""Apertus 1 and the text decoder of Apertus 1.5."""

from __future__ import annotations

from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama, plain
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import Activation


def apertus(config: Config) -> DecoderPlan:
    """Norms of queries and keys; MLPs without a gate, their activation with two learned numbers."""
    attention = llama.attention(config, norm=llama.norm(config, "attention_layernorm"), qk_norm=llama.qk_norm(config))
    mlp = plain.mlp(
        config,
        norm=llama.norm(config, "feedforward_layernorm"),
        activation_path="mlp.act_fn" if llama.activation(config["hidden_act"]) is Activation.XIELU else None,
    )
    return llama.alike(config, attention, mlp)
