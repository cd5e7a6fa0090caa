"""Nemotron, Arcee, Jais 2: MLPs without a gate, as a rule with ReLU²."""

from __future__ import annotations

from typing import Any

from selfspec_tune.plans.attention import RopePlan
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import MlpPlan
from selfspec_tune.plans.norm import NormPlan


def mlp(config: Config, **changes: Any) -> MlpPlan:
    """Up, activation, down."""
    return llama.mlp(config, inputs=("mlp.up_proj",), is_gated=False, **changes)


def arcee(config: Config) -> DecoderPlan:
    """Llama with such an MLP."""
    return llama.alike(config, llama.attention(config), mlp(config))


def jais2(config: Config) -> DecoderPlan:
    """LayerNorm."""
    before, between, last = _norms(config["layer_norm_eps"])
    return llama.alike(config, llama.attention(config, norm=before), mlp(config, norm=between), norm=last)


def nemotron(config: Config) -> DecoderPlan:
    """LayerNorm with weights stored minus one; rope over a part of a head."""
    before, between, last = _norms(config["norm_eps"], one_plus=True)
    rope = RopePlan(table="full", size=llama.rope_size(config, llama.head_size(config)))
    return llama.alike(config, llama.attention(config, norm=before, rope=rope), mlp(config, norm=between), norm=last)


def _norms(epsilon: float, **changes: Any) -> tuple[NormPlan, ...]:
    paths = ("input_layernorm", "post_attention_layernorm", "model.norm")
    return tuple(llama.layer_norm(path, epsilon, **changes) for path in paths)
