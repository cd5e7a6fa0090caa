"""SmolLM 3."""

from __future__ import annotations

from selfspec_tune.plans.decoder import DecoderPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def smollm3(config: Config) -> DecoderPlan:
    """Some layers without rotary positions; windows by layer."""
    mlp = llama.mlp(config)

    def layer(index: int) -> LayerPlan:
        rope = {} if config["no_rope_layers"][index] else {"rope": None}
        return LayerPlan(attention=llama.attention(config, reach=llama.reach(config, index), **rope), mlp=mlp)

    return llama.decoder(config, layer)
