"""Llama, and what other families start from: their files state only what differs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, cast

from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans.attention import AttentionPlan, QkNormKind, QkNormPlan, Reach, ReachKind, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan, EmbeddingPlan, LayerPlan, RopeTable
from selfspec_tune.plans.mlp import Activation, MlpPlan
from selfspec_tune.plans.norm import NormKind, NormPlan

Config = Mapping[str, Any]
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")
_ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "relu2": Activation.RELU2,
    "xielu": Activation.XIELU,
}


def renamed(config: Config, **values: Any) -> Config:
    """The configuration with ``values`` by the names that most families use."""
    return ChainMap(values, cast("dict[str, Any]", config))


def activation(name: str) -> Activation:
    """What transformers calls ``name``. Raises `UnsupportedModelError` where no plan has it."""
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"its activation {name} is none of {', '.join(sorted(_ACTIVATIONS))}")
    return _ACTIVATIONS[name]


def check_static_rope(parameters: Mapping[str, Any] | None) -> None:
    """Raise `UnsupportedModelError` unless angles depend on the position alone."""
    kind = (parameters or {}).get("rope_type", "default")
    if kind in ("dynamic", "longrope"):
        raise UnsupportedModelError(f"its rotary positions ({kind}) depend on the length")
    if kind not in _STATIC_ROPE:
        raise UnsupportedModelError(f"its rotary positions ({kind}) are none of {', '.join(_STATIC_ROPE)}")


def rope_table(config: Config, at: str = "model") -> RopeTable:
    """The one table of a decoder at ``at``, up to the length where it becomes another: no context goes beyond."""
    parameters = config.get("rope_parameters") or {}
    kind, module = parameters.get("rope_type", "default"), f"{at}.rotary_emb"
    if kind in ("dynamic", "longrope"):
        owner = config if kind == "dynamic" else parameters
        name = "max_position_embeddings" if kind == "dynamic" else "original_max_position_embeddings"
        return RopeTable(module=module, frequencies="original_inv_freq", longest=owner[name])
    check_static_rope(parameters)
    return RopeTable(module=module)


def rope_size(config: Config, size: int) -> int:
    """How many of a head's ``size`` dimensions are rotated, where a family lets ``partial_rotary_factor`` say it."""
    return int(size * (config["rope_parameters"].get("partial_rotary_factor") or 1.0))


def check_whole_rope(parameters: Mapping[str, Any]) -> None:
    """Raise `UnsupportedModelError` where a part of a head is to be rotated, in a family whose code has no such."""
    factor = parameters.get("partial_rotary_factor") or 1.0
    if factor != 1:
        raise UnsupportedModelError(f"its rotary positions are for a part of a head ({factor}), which it cannot rotate")


def ropes_by_type(config: Config) -> dict[str, RopeTable]:
    """A table for each kind of layer that has one, by its name in ``layer_types``."""
    kinds = sorted(kind for kind in set(config["layer_types"]) if config["rope_parameters"].get(kind) is not None)
    for kind in kinds:
        check_static_rope(config["rope_parameters"][kind])
    return {
        kind: RopeTable(module="model.rotary_emb", frequencies=f"{kind}_inv_freq", factor=f"{kind}_attention_scaling")
        for kind in kinds
    }


def window(size: int | None) -> Reach:
    """The last ``size`` positions, or all for None."""
    return Reach() if size is None else Reach(ReachKind.WINDOW, size)


def reach(config: Config, layer: int) -> Reach:
    """By ``layer_types`` and ``sliding_window``."""
    kind = config["layer_types"][layer]
    if kind not in ("full_attention", "sliding_attention"):
        raise UnsupportedModelError(f"its layers of type {kind} are none of this family's")
    return window(config["sliding_window"]) if kind == "sliding_attention" else Reach()


def norm(config: Config, path: str, **changes: Any) -> NormPlan:
    """An RMSNorm at ``path`` with the configuration's ``rms_norm_eps``, unless ``changes`` say otherwise."""
    given = {"epsilon": config["rms_norm_eps"]} if "epsilon" not in changes else {}
    return NormPlan(path=path, **given, **changes)


def layer_norm(path: str, epsilon: float, **changes: Any) -> NormPlan:
    """torch's LayerNorm."""
    return NormPlan(path=path, epsilon=epsilon, kind=NormKind.LAYER, is_late=True, **changes)


def qk_norm(config: Config, names: tuple[str, str] = ("q_norm", "k_norm"), **changes: Any) -> QkNormPlan:
    """RMSNorm of each head's query and key, by one weight for all heads, with ``changes``."""
    query, key = (norm(config, f"self_attn.{name}") for name in names)
    given: dict[str, Any] = {"kind": QkNormKind.HEAD, "query": query, "key": key}
    return QkNormPlan(**(given | changes))


def partial_rope(config: Config, **changes: Any) -> RopePlan:
    """Rotation of the first ``partial_rotary_factor`` of each head, by the table ``full``, with ``changes``."""
    given: dict[str, Any] = {"table": "full", "size": rope_size(config, head_size(config))}
    return RopePlan(**(given | changes))


def head_size(config: Config) -> int:
    """``head_dim``, or the width over the heads."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def attention(config: Config, **changes: Any) -> AttentionPlan:
    """Llama's attention with ``changes``; rope over the whole head by the table ``full`` unless they say otherwise."""
    size = head_size(config)
    given: dict[str, Any] = {
        "silence": ("self_attn",),
        "norm": None if "norm" in changes else norm(config, "input_layernorm"),
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_size": size,
        "scale": size**-0.5,
        "inputs": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "output": "self_attn.o_proj",
        "rope": RopePlan(table="full", size=size),
    }
    return AttentionPlan(**(given | changes))


def mlp(config: Config, **changes: Any) -> MlpPlan:
    """Llama's MLP with ``changes``."""
    given: dict[str, Any] = {
        "silence": ("mlp",),
        "norm": None if "norm" in changes else norm(config, "post_attention_layernorm"),
        "width": None if "width" in changes else config["intermediate_size"],
        "inputs": ("mlp.gate_proj", "mlp.up_proj"),
        "output": "mlp.down_proj",
        "activation": Activation.SILU if "activation" in changes else activation(config["hidden_act"]),
    }
    return MlpPlan(**(given | changes))


def decoder(config: Config, layer: Callable[[int], LayerPlan], *, at: str = "model", **changes: Any) -> DecoderPlan:
    """Llama's decoder, at the path ``at`` within the model, with ``layer`` (number) as its layers, and ``changes``."""
    if "ropes" not in changes:
        changes["ropes"] = {"full": rope_table(config, at)}
    given: dict[str, Any] = {
        "model_type": config["model_type"],
        "layers_path": f"{at}.layers",
        "hidden_size": config["hidden_size"],
        "embedding": EmbeddingPlan(path=f"{at}.embed_tokens"),
        "layers": tuple(layer(index) for index in range(config["num_hidden_layers"])),
        "norm": None if "norm" in changes else norm(config, f"{at}.norm"),
    }
    return DecoderPlan(**(given | changes))


def alike(config: Config, attention: AttentionPlan, mlp: MlpPlan, **changes: Any) -> DecoderPlan:
    """A decoder all of whose layers are alike."""
    layer = LayerPlan(attention=attention, mlp=mlp)
    return decoder(config, lambda _: layer, **changes)


def llama(config: Config) -> DecoderPlan:
    """llama; exaone 3, internlm3 and iquestcoder, which load as it; seed_oss. They differ in biases alone."""
    return alike(config, attention(config), mlp(config))
