"""BLOOM, Falcon and MPT, whose scores fall, or may fall, with distance."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.attention import AlibiPlan, BiasRounding, RopePlan, WeightOrder
from selfspec_tune.plans.decoder import BlockOrder, DecoderPlan, EmbeddingPlan, LayerPlan
from selfspec_tune.plans.families import llama
from selfspec_tune.plans.families.llama import Config
from selfspec_tune.plans.mlp import Activation


def bloom(config: Config) -> DecoderPlan:
    """LayerNorm, after the embedding too; weights by head; no rotation, a plain MLP; modules add the residual."""
    if config["apply_residual_connection_post_layernorm"]:
        reason = "it adds to the normalised stream (apply_residual_connection_post_layernorm)"
        raise UnsupportedModelError(reason)
    slices, is_sliced = config["pretraining_tp"], config["slow_but_exact"]
    if is_sliced and slices > 1:
        raise UnsupportedModelError("it leaves out biases (slow_but_exact with pretraining_tp above 1)")
    width, heads = config["hidden_size"], config["n_head"]
    config = llama.renamed(config, num_attention_heads=heads, num_hidden_layers=config["n_layer"])
    norm = partial(llama.layer_norm, epsilon=config["layer_norm_epsilon"])
    attention = llama.attention(
        config,
        silence=("self_attention.dense",),
        norm=norm("input_layernorm"),
        **_whole_heads(width, heads),
        alibi=AlibiPlan(slopes=tuple(_slopes(heads)), rounding=BiasRounding.TYPE),
    )
    mlp = llama.mlp(
        config,
        silence=("mlp.dense_4h_to_h",),
        norm=norm("post_attention_layernorm"),
        **_MLP,
        width=4 * width,
        activation=Activation.GELU_TANH,
    )
    layer = LayerPlan(attention=attention, mlp=mlp)
    at = "transformer"
    embedding = EmbeddingPlan(path=f"{at}.word_embeddings", norm=norm(f"{at}.word_embeddings_layernorm"))
    last = norm(f"{at}.ln_f")
    return llama.decoder(config, lambda _: layer, layers_path=f"{at}.h", embedding=embedding, norm=last, ropes={})


def falcon(config: Config) -> DecoderPlan:
    """Falcon of all ages: side by side after one LayerNorm or two, or in sequence; rotated, or falling scores."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    is_new, is_parallel, count = _falcon_blocks(config)
    norm = partial(llama.layer_norm, epsilon=config["layer_norm_epsilon"])
    own = _whole_heads(width, heads)
    if is_new:
        own["num_kv_heads"] = config["num_kv_heads"]
    elif config["multi_query"]:
        own |= {"num_kv_heads": 1, "order": WeightOrder.STACKED}
    if config["alibi"]:
        slopes = tuple(_slopes(heads))
        own["alibi"] = AlibiPlan(slopes=slopes, scale=own["scale"], rounding=BiasRounding.BFLOAT16)
    else:
        own["rope"] = RopePlan(table="full", size=own["head_size"])
    first = norm("ln_attn" if is_parallel and count == 2 else "input_layernorm")
    second = norm("ln_mlp") if count == 2 else first
    mlp = llama.mlp(
        config,
        norm=second if is_parallel else norm("post_attention_layernorm"),
        **_MLP,
        width=config["ffn_hidden_size"],
        activation=llama.activation(config["activation"]),
    )
    layer = LayerPlan(
        attention=llama.attention(config, silence=("self_attention",), norm=first, **own),
        mlp=mlp,
        order=BlockOrder.PARALLEL if is_parallel else BlockOrder.SEQUENTIAL,
    )
    at = "transformer"
    changes: dict[str, Any] = {"ropes": {}} if config["alibi"] else {}
    embedding, last = EmbeddingPlan(path=f"{at}.word_embeddings"), norm(f"{at}.ln_f")
    return llama.decoder(
        config, lambda _: layer, at=at, layers_path=f"{at}.h", embedding=embedding, norm=last, **changes
    )


def mpt(config: Config) -> DecoderPlan:
    """LayerNorm without bias, stacked weights, no rotation, a plain MLP that adds the residual."""
    width, heads = config["d_model"], config["n_heads"]
    told = config["attn_config"]
    layers = config["n_layers"]
    config = llama.renamed(config, hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers)
    norm = partial(llama.layer_norm, epsilon=config["layer_norm_epsilon"])
    size = width // heads
    attention = llama.attention(
        config,
        silence=("attn",),
        norm=norm("norm_1"),
        num_kv_heads=heads,
        head_size=size,
        scale=size**-0.5 if told["softmax_scale"] is None else told["softmax_scale"],
        inputs=("attn.Wqkv",),
        output="attn.out_proj",
        order=WeightOrder.STACKED,
        clip=told["clip_qkv"] or None,
        rope=None,
        alibi=AlibiPlan(slopes=tuple(_halving_slopes(heads))),
    )
    mlp = llama.mlp(
        config,
        silence=("ffn.down_proj",),
        norm=norm("norm_2"),
        inputs=("ffn.up_proj",),
        output="ffn.down_proj",
        width=4 * width,
        is_gated=False,
        activation=Activation.GELU,
    )
    layer = LayerPlan(attention=attention, mlp=mlp)
    at = "transformer"
    embedding, last = EmbeddingPlan(path=f"{at}.wte"), norm(f"{at}.norm_f")
    return llama.decoder(config, lambda _: layer, layers_path=f"{at}.blocks", embedding=embedding, norm=last, ropes={})


_MLP: dict[str, Any] = {"inputs": ("mlp.dense_h_to_4h",), "output": "mlp.dense_4h_to_h", "is_gated": False}


def _whole_heads(width: int, heads: int) -> dict[str, Any]:
    """Of an attention with a key and a value for each query, weights by head, and no rotation."""
    return {
        "num_kv_heads": heads,
        "head_size": width // heads,
        "scale": (width // heads) ** -0.5,
        "inputs": ("self_attention.query_key_value",),
        "output": "self_attention.dense",
        "order": WeightOrder.GROUPED,
        "rope": None,
    }


def _falcon_blocks(config: Config) -> tuple[bool, bool, int]:
    """Whether the decoder is the new one, whether its sub-layers are parallel, and how many norms they then have."""
    is_new, is_parallel = bool(config["new_decoder_architecture"]), bool(config["parallel_attn"])
    count = config["num_ln_in_parallel_attn"] or (2 if is_new else 1)
    if is_new and not is_parallel:
        raise UnsupportedModelError("its new_decoder_architecture is without parallel_attn, which has no forward")
    if count not in (1, 2) or (count == 2 and is_parallel and not is_new):
        raise UnsupportedModelError(f"its num_ln_in_parallel_attn is {count}, which has no forward")
    return is_new, is_parallel, count


def _slopes(heads: int) -> Iterator[float]:
    """BLOOM's: powers of one number, and between them those of its root where heads are no power of two."""
    whole = 2 ** math.floor(math.log2(heads))
    yield from (_single(_base(whole) ** power) for power in range(1, whole + 1))
    rest = min(whole, heads - whole)
    yield from (_single(_base(2 * whole) ** power) for power in range(1, 1 + 2 * rest, 2))


def _base(heads: int) -> float:
    return _single(2 ** -(2 ** -(math.log2(heads) - 3)))


def _single(value: float) -> float:
    """In single precision, as transformers computes."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _halving_slopes(heads: int) -> list[float]:
    """MPT's: of the next power of two, every second one first where heads are none. Its alibi_bias_max is not read."""
    whole = 2 ** math.ceil(math.log2(heads))
    slopes = [_single(2.0 ** -(8 * (head + 1) / whole)) for head in range(whole)]
    return slopes if whole == heads else (slopes[1::2] + slopes[::2])[:heads]
