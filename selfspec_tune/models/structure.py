"""Which models have the structure that our own loops serve: Llama-shaped ones."""

from __future__ import annotations

from torch import nn

from selfspec_tune.models.loaded import LoadedModel

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_LAYER_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_CHILDREN = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_CHILDREN = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def unsupported_reason(loaded: LoadedModel) -> str | None:
    """Why the fast runner cannot serve this model, or None where its structure fits."""
    config, decoder = loaded.model.config, loaded.model.base_model
    if loaded.is_quantised:
        return "its weights are quantised"
    if getattr(loaded.model, "_hf_peft_config_loaded", False):
        return "an adapter is applied to its weights"
    layer_types = set(getattr(config, "layer_types", None) or {"full_attention"})
    if layer_types != {"full_attention"} or getattr(config, "sliding_window", None):
        return "it has sliding-window or linear attention"
    if not all(hasattr(decoder, name) for name in ("embed_tokens", "norm", "rotary_emb")):
        return "its decoder has no embed_tokens, norm and rotary_emb"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _STATIC_ROPE:
        return f"its rotary positions ({rope['rope_type']}) depend on the length"
    for index, layer in enumerate(loaded.sublayers.layers):
        if (reason := _unlike_llama(layer)) is not None:
            return f"layer {index} {reason}"
    return None


def _unlike_llama(layer: nn.Module) -> str | None:
    children = dict(layer.named_children())
    if set(children) != _LAYER_CHILDREN:
        return f"has the parts {sorted(children)}"
    if {name for name, _ in children["self_attn"].named_children()} != _ATTENTION_CHILDREN:
        return "has an attention that is not q, k, v and o projections alone"
    mlp = dict(children["mlp"].named_children())
    if set(mlp) != _MLP_CHILDREN or "silu" not in type(mlp["act_fn"]).__name__.lower():
        return "has an MLP that is not gate, up and down projections with SiLU"
    stacks = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    for owner, names in zip((layer.self_attn, layer.mlp), stacks, strict=True):
        if len({getattr(owner, name).bias is None for name in names}) > 1:
            return f"has biases on some of {', '.join(names)} only"
    return None
