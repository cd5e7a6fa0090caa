"""StarCoder 2."""

from __future__ import annotations

from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def starcoder2(config: Config) -> DecoderPlan:
    """LayerNorm, MLPs without a gate, biases; one window for all layers, or none."""
    before, between, last = (
        llama.layer_norm(path, config["norm_epsilon"])
        for path in ("input_layernorm", "post_attention_layernorm", "model.norm")
    )
    attention = llama.attention(config, norm=before, reach=llama.window(config["sliding_window"]))
    mlp = llama.mlp(config, norm=between, inputs=("mlp.c_fc",), output="mlp.c_proj", is_gated=False)
    return llama.alike(config, attention, mlp, norm=last)
