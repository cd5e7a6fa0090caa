"""EXAONE 4, dense. EXAONE 3 loads as a Llama."""

from __future__ import annotations

from selfspec_tune.plans.decoder import DecoderPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def exaone4(config: Config) -> DecoderPlan:
    """Norms after each sub-layer instead of before; norms of queries and keys.

    Where a window is set, layers have either it or no rotary positions.
    """
    norms = llama.qk_norm(config)
    post = llama.norm(config, "post_attention_layernorm")
    mlp = llama.mlp(config, norm=None, post=llama.norm(config, "post_feedforward_layernorm"))

    def layer(index: int) -> LayerPlan:
        is_window = config["layer_types"][index] == "sliding_attention"
        rope = {} if is_window or config["sliding_window"] is None else {"rope": None}
        reach = llama.reach(config, index)
        return LayerPlan(
            attention=llama.attention(config, norm=None, post=post, qk_norm=norms, reach=reach, **rope), mlp=mlp
        )

    return llama.decoder(config, layer)
