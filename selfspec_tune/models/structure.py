"""Which models have the structure that our own loops serve: Llama-shaped ones, known wholly.

The loops compute what transformers' Llama computes. What a model's modules or its configuration have
beyond Llama's own must stand in a table here, with the values at which it changes nothing. Anything
else is a reason to refuse, by name: it may matter only at positions that no probe reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from selfspec_tune.models.loaded import LoadedModel
from selfspec_tune.models.sublayers import SubLayers

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_LAYER_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_CHILDREN = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_CHILDREN = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_DECODER_CHILDREN = {"embed_tokens", "layers", "norm", "rotary_emb"}
_SILU = {"SiLU", "SiLUActivation"}
_KNOWN_CODE = {"transformers", "torch"}
_FOREIGN_CODE = "transformers_modules"  # where transformers keeps the code that came with a checkpoint
_EPSILONS = ("variance_epsilon", "eps")

_Table = Mapping[str, tuple[object, ...] | EllipsisType]
_ANY = ...
# What modules of other families carry, and the values at which it changes nothing. None always does.
_ATTRIBUTES: _Table = {
    "layer_type": ("full_attention",),
    "attention_type": ("full_attention",),
    "is_causal": (True,),
    "is_quantized": (False,),
    "has_sliding_layers": (False,),
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "num_heads": _ANY,  # sizes, which the weights have too
    "num_attention_heads": _ANY,
    "num_key_value_heads": _ANY,
    "hidden_size": _ANY,
    "residual_dropout": _ANY,  # nothing is dropped outside training
    "eps": _ANY,  # read by its name, as Llama's variance_epsilon
    "normalized_shape": _ANY,
    "elementwise_affine": _ANY,
}
# What other families' configurations declare, alike.
_FIELDS: _Table = {
    "layer_types": _ANY,  # looked at below
    "use_sliding_window": _ANY,
    "max_window_layers": _ANY,
    "residual_multiplier": (1,),
    "embedding_multiplier": (1,),
    "logits_scaling": (1,),
    "attention_multiplier": _ANY,  # read off the module, as `scaling`
    "attention_out_bias": _ANY,  # biases are read where there are any
    "bias": _ANY,
    "qkv_bias": _ANY,
    "use_bias": _ANY,
    "residual_dropout": _ANY,
    "resid_pdrop": _ANY,
    "embd_pdrop": _ANY,
    "rope_theta": _ANY,  # the model's own module makes the tables
    "rope_scaling": _ANY,
    "auto_map": _ANY,
    "torch_dtype": _ANY,
}
_ROPE_FIELDS: _Table = {
    "partial_rotary_factor": (1,),
    "llama_4_scaling_beta": (0,),
    # These make the model's own tables of rotations, and nothing else.
    **dict.fromkeys(("rope_type", "type", "rope_theta", "factor", "attention_factor", "truncate"), _ANY),
    **dict.fromkeys(("original_max_position_embeddings", "max_position_embeddings"), _ANY),
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"), _ANY),
    **dict.fromkeys(("mscale", "mscale_all_dim"), _ANY),
}


def unsupported_reason(loaded: LoadedModel) -> str | None:
    """Why our own loops cannot serve this model, or None where they know all of it. Raises nothing."""
    return structure_reason(loaded.model, loaded.sublayers)


def structure_reason(model: PreTrainedModel, sublayers: SubLayers) -> str | None:
    """The same of a model that needs no weights: it may be on torch's meta device."""
    try:
        return next(_reasons(model, sublayers), None)
    except Exception as error:  # a module of another make may have, or lack, anything
        return f"its structure cannot be read ({type(error).__name__}: {error})"


def _reasons(model: Any, sublayers: SubLayers) -> Iterator[str]:
    config, decoder, llama = model.config, model.base_model, _llama()
    if getattr(model, "is_quantized", False):
        yield "its weights are quantised"
    if getattr(model, "_hf_peft_config_loaded", False):
        yield "an adapter is applied to its weights"
    layer_types = set(getattr(config, "layer_types", None) or {"full_attention"})
    if layer_types != {"full_attention"} or getattr(config, "sliding_window", None):
        yield "it has sliding-window or linear attention"
    if not all(hasattr(decoder, name) for name in _DECODER_CHILDREN - {"layers"}):
        yield "its decoder has no embed_tokens, norm and rotary_emb"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _STATIC_ROPE:
        yield f"its rotary positions ({rope['rope_type']}) depend on the length"
    for index, layer in enumerate(sublayers.layers):
        yield from (f"layer {index} {reason}" for reason in _unlike_llama(layer, index, config))
    yield from (f"its configuration has {field}" for field in _unknown(_fields(model), _FIELDS))
    yield from (f"its configuration has rope_parameters.{field}" for field in _unknown(rope, _ROPE_FIELDS))
    yield from (f"its rotary_emb {reason}" for reason in _foreign(decoder.rotary_emb, llama.model.rotary_emb))
    yield from (f"its final norm {reason}" for reason in _unlike_norm(decoder.norm))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    yield from (f"its embedding {reason}" for reason in _not_plain(embedding, nn.Embedding))
    yield from (f"its head {reason}" for reason in _not_plain(head, nn.Linear))
    decoder_parts = {name for name, _ in decoder.named_children()}
    others = {name for name, child in model.named_children() if child is not decoder and child is not head}
    if parts := sorted(others | (decoder_parts - _DECODER_CHILDREN)):
        yield f"it has the further parts {', '.join(parts)}"
    for owner, known in ((decoder, llama.model), (model, llama)):
        numbers = {name: value for name, value in vars(owner).items() if isinstance(value, int | float | Tensor)}
        yield from (f"it has {name}" for name in _unknown(_new(numbers, vars(known)), _ATTRIBUTES))
        yield from (f"it has {name}" for name in _tensors(owner) - _tensors(known))
    yield from _own_code(model)


def _unlike_llama(layer: nn.Module, index: int, config: Any) -> Iterator[str]:
    children, llama = dict(layer.named_children()), _llama().model.layers[0]
    if set(children) != _LAYER_CHILDREN:
        yield f"has the parts {sorted(children)}"
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    if {name for name, _ in attention.named_children()} != _ATTENTION_CHILDREN:
        yield "has an attention that is not q, k, v and o projections alone"
    if {name for name, _ in mlp.named_children()} != _MLP_CHILDREN or type(mlp.act_fn).__name__ not in _SILU:
        yield "has an MLP that is not gate, up and down projections with SiLU"
    stacks = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    for owner, names in zip((attention, mlp), stacks, strict=True):
        if len({getattr(owner, name).bias is None for name in names}) > 1:
            yield f"has biases on some of {', '.join(names)} only"
    for owner, layers in ((attention, _ATTENTION_CHILDREN), (mlp, _MLP_CHILDREN - {"act_fn"})):
        for name in sorted(layers):
            yield from (f"has a {name} that {reason}" for reason in _not_plain(getattr(owner, name), nn.Linear))
    yield from _foreign(layer, llama)
    yield from (f"has an attention that {reason}" for reason in _foreign(attention, llama.self_attn))
    yield from (f"has an MLP that {reason}" for reason in _foreign(mlp, llama.mlp))
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield from (f"has an {name} that {reason}" for reason in _unlike_norm(children[name]))
    if getattr(attention, "layer_idx", index) != index:
        yield f"uses the cache of layer {attention.layer_idx}"
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if getattr(attention, "head_dim", head_size) != head_size:
        yield f"has heads of {attention.head_dim}, where the configuration says {head_size}"


def _own_code(model: nn.Module) -> Iterator[str]:
    """Classes whose computation is neither transformers' nor torch's: it may do anything, at any position."""
    kinds = {type(module) for module in model.modules()}
    for kind in sorted(kinds, key=lambda kind: kind.__name__):
        home = getattr(kind.forward, "__module__", "")
        if home.partition(".")[0] not in _KNOWN_CODE or home.startswith(_FOREIGN_CODE):
            yield f"its {kind.__name__} computes by code of its own ({home})"


def _unlike_norm(norm: nn.Module) -> Iterator[str]:
    if set(dict(norm.named_parameters())) != {"weight"}:
        yield "has no weight, or more than a weight"
    if sum(isinstance(getattr(norm, name, None), float) for name in _EPSILONS) != 1:
        yield f"has not one epsilon, as {' or '.join(_EPSILONS)}"
    yield from _foreign(norm, _llama().model.norm)
    yield from _hooked(norm)


def _foreign(module: nn.Module, llamas: nn.Module) -> Iterator[str]:
    """What ``module`` has beyond Llama's, its parts apart, that may change what it computes."""
    known = vars(llamas).keys() | vars(nn.Module()).keys()
    yield from (f"has {name}" for name in _unknown(_new(vars(module), known), _ATTRIBUTES))
    yield from (f"has {name}" for name in sorted(_tensors(module) - _tensors(llamas)))
    if getattr(module, "is_causal", True) is not True:
        yield "is not causal"


def _not_plain(module: nn.Module, kind: type[nn.Module]) -> Iterator[str]:
    """A layer of another class, quantised or adapted, holds more than the weight and bias that are read."""
    is_plain = type(module).forward is kind.forward and not list(module.children())
    if not is_plain or _tensors(module) - {"weight", "bias"} or getattr(module, "max_norm", None) is not None:
        yield f"is no plain {kind.__name__} ({type(module).__name__})"
    yield from _hooked(module)


def _hooked(module: nn.Module) -> Iterator[str]:
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        yield "computes more than its class does"


def _tensors(module: nn.Module) -> set[str]:
    """Names of the module's own parameters and buffers, those of its parts apart."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name for name, _ in own}


def _fields(model: Any) -> dict[str, object]:
    """What the model's code can read of its configuration, beyond what Llama's declares.

    A class of transformers reads what its configuration declares; a model's own code may read anything.
    """
    config = model.config
    is_library_code = type(model).__module__.startswith("transformers.") and is_dataclass(config)
    names = [field.name for field in fields(config)] if is_library_code else config.to_dict()
    return _new({name: getattr(config, name, None) for name in names}, LlamaConfig().to_dict())


def _new(values: Mapping[str, object], known: Iterable[str]) -> dict[str, object]:
    """Those of ``values`` whose names are not ``known``; flags and tables with an underscore are a library's own."""
    names = set(known)
    return {
        name: value
        for name, value in values.items()
        if name not in names and (isinstance(value, float | Tensor) or not name.startswith("_"))
    }


def _unknown(values: Mapping[str, object], table: _Table) -> Iterator[str]:
    """Names whose values may change what is computed: all but None and what ``table`` allows."""
    for name, value in values.items():
        allowed = table.get(name, ())
        if value is None or allowed is _ANY:
            continue
        if not isinstance(value, int | float | str) or value not in allowed:
            yield f"{name}, which our own loops do not know"


@cache
def _llama() -> Any:
    """The smallest Llama, without memory: what the loops were written for."""
    sizes: dict[str, Any] = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=4))
