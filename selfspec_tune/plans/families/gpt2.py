"""GPT-2, GPT-BigCode (StarCoder 1) and GPT-J."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.attention import AttentionPlan, RopePairs, RopePlan, WeightOrder
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, EmbeddingPlan, LayerPlan, RopeTable
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import MlpPlan


def gpt2(config: Config) -> DecoderPlan:
    """LayerNorm, learned positions, a plain MLP; stacked and transposed weights; scores may fall with the layer."""
    config = _common(config)
    scale = _scale(config)

    def layer(index: int) -> LayerPlan:
        falls = index + 1 if config["scale_attn_by_inverse_layer_idx"] else 1
        attention = _attention(config, scale=scale / falls, order=WeightOrder.STACKED, is_transposed=True)
        return LayerPlan(attention=attention, mlp=_mlp(config, is_transposed=True))

    return _decoder(config, layer)


def gpt_bigcode(config: Config) -> DecoderPlan:
    """GPT-2 with plain linear layers; all heads share one key and value, or weights lie by head."""
    config = _common(config)
    shared: dict[str, Any] = {"order": WeightOrder.STACKED, "num_kv_heads": 1}
    given = shared if config["multi_query"] else {"order": WeightOrder.GROUPED}
    layer = LayerPlan(attention=_attention(config, scale=_scale(config), **given), mlp=_mlp(config))
    return _decoder(config, lambda _: layer)


def gptj(config: Config) -> DecoderPlan:
    """Attention and plain MLP side by side after one LayerNorm; adjacent pairs of a part of each head are rotated."""
    config = _common(config)
    if not config["rotary_dim"]:
        raise UnsupportedModelError("its rotary_dim is not set")
    attention = _attention(
        config,
        inputs=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        output="attn.out_proj",
        rope=RopePlan(table="full", size=config["rotary_dim"], pairs=RopePairs.ADJACENT),
    )
    mlp = _mlp(config, norm=attention.norm, inputs=("mlp.fc_in",), output="mlp.fc_out")
    layer = LayerPlan(attention=attention, mlp=mlp, order=BlockOrder.PARALLEL)
    embedding, ropes = EmbeddingPlan(path="transformer.wte"), {"full": RopeTable(theta=10000.0)}
    return _decoder(config, lambda _: layer, embedding=embedding, ropes=ropes)


def _common(config: Config) -> Config:
    """The configuration by the names that most families use."""
    if config.get("add_cross_attention"):
        raise UnsupportedModelError("it attends to an encoder (add_cross_attention)")
    inner = 4 * config["n_embd"] if config["n_inner"] is None else config["n_inner"]
    return llama.renamed(
        config,
        hidden_size=config["n_embd"],
        num_attention_heads=config["n_head"],
        num_hidden_layers=config["n_layer"],
        intermediate_size=inner,
        hidden_act=config["activation_function"],
    )


def _scale(config: Config) -> float:
    size: int = config["n_embd"] // config["n_head"]
    return size**-0.5 if config["scale_attn_weights"] else 1.0


def _attention(config: Config, **changes: Any) -> AttentionPlan:
    size = config["n_embd"] // config["n_head"]
    given: dict[str, Any] = {
        "silence": ("attn",),
        "norm": llama.layer_norm("ln_1", config["layer_norm_epsilon"]),
        "num_kv_heads": config["n_head"],
        "head_size": size,
        "scale": size**-0.5,
        "inputs": ("attn.c_attn",),
        "output": "attn.c_proj",
        "rope": None,
    }
    return llama.attention(config, **(given | changes))


def _mlp(config: Config, **changes: Any) -> MlpPlan:
    norm = llama.layer_norm("ln_2", config["layer_norm_epsilon"])
    given: dict[str, Any] = {"norm": norm, "inputs": ("mlp.c_fc",), "output": "mlp.c_proj", "is_gated": False}
    return llama.mlp(config, **(given | changes))


def _decoder(config: Config, layer: Callable[[int], LayerPlan], **changes: Any) -> DecoderPlan:
    given: dict[str, Any] = {
        "layers_path": "transformer.h",
        "embedding": EmbeddingPlan(path="transformer.wte", positions="transformer.wpe"),
        "norm": llama.layer_norm("transformer.ln_f", config["layer_norm_epsilon"]),
        "ropes": {},
    }
    return llama.decoder(config, layer, **(given | changes))
