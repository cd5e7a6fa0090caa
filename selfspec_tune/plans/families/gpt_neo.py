"""GPT-Neo."""

from __future__ import annotations

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config


def gpt_neo(config: Config) -> DecoderPlan:
    """LayerNorm, learned positions, a plain MLP; scores are not scaled; some layers have a window."""
    width = config["hidden_size"]
    before, between, last = (
        llama.layer_norm(path, config["layer_norm_epsilon"]) for path in ("ln_1", "ln_2", "transformer.ln_f")
    )
    mlp = llama.mlp(
        config,
        norm=between,
        width=4 * width if config["intermediate_size"] is None else config["intermediate_size"],
        inputs=("mlp.c_fc",),
        output="mlp.c_proj",
        is_gated=False,
        activation=llama.activation(config["activation_function"]),
    )
    names = {**config, "num_attention_heads": config["num_heads"], "num_hidden_layers": config["num_layers"]}

    def layer(index: int) -> LayerPlan:
        kind = config["attention_layers"][index]
        if kind not in ("global", "local"):
            raise UnsupportedModelError(f"its layers of type {kind} are none of this family's")
        attention = llama.attention(
            names,
            silence=("attn",),
            norm=before,
            head_size=width // config["num_heads"],
            num_kv_heads=config["num_heads"],
            scale=1.0,
            inputs=tuple(f"attn.attention.{name}_proj" for name in "qkv"),
            output="attn.attention.out_proj",
            rope=None,
            reach=llama.window(config["window_size"] if kind == "local" else None),
        )
        return LayerPlan(attention=attention, mlp=mlp)

    embedding = EmbeddingPlan(path="transformer.wte", positions="transformer.wpe")
    return llama.decoder(names, layer, layers_path="transformer.h", embedding=embedding, norm=last, ropes={})
