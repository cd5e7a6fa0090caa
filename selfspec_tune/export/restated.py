"""A model's configuration for fewer layers, and the proof that each of them computes what it did."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from selfspec_tune.export.blocks import LayerBlock
from selfspec_tune.plans import BlockOrder, DecoderPlan, LayerPlan
from selfspec_tune.plans.mlp import ExpertsPlan, MlpPlan

_OF_MLPS = re.compile(r"mlp|moe|expert|intermediate|ffn")  # lists by layer that follow the MLP, not the attention
_NO_LISTS_BY_LAYER = re.compile(r"_token_ids?$|^architectures$")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk")  # experts that a token goes to, perhaps by layer
_DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers")


def restated(
    config: Mapping[str, Any], depth: int, plan: DecoderPlan | None, blocks: Sequence[LayerBlock]
) -> dict[str, Any]:
    """The entries of ``config``, a decoder's with every default, that are others in a model of whole ``blocks``.

    ``depth``: its layers, of which the new number is not among them: families have names of their own for that.
    Without a plan only lists follow the layers.
    """
    sources = [(_known(block.attention), _known(block.mlp)) for block in blocks]
    entries: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, list) and len(value) == depth and not _NO_LISTS_BY_LAYER.search(name):
            entries[name] = [value[mlp if _OF_MLPS.search(name) else attention] for attention, mlp in sources]
    first_windows = config.get("max_window_layers")
    if isinstance(first_windows, int):
        entries["max_window_layers"] = sum(attention < first_windows for attention, _ in sources)
    if plan is not None:
        entries |= _of_experts([isinstance(plan.layers[mlp].mlp, MlpPlan) for _, mlp in sources])
    return {name: value for name, value in entries.items() if name in config and config[name] != value}


def _of_experts(is_dense: Sequence[bool]) -> dict[str, Any]:
    """By the names that families have for it: which layers have experts."""
    sparse = [index for index, dense in enumerate(is_dense) if not dense]
    first, last = (sparse[0], sparse[-1]) if sparse else (len(is_dense), len(is_dense) - 1)
    steps = (step for step in range(1, len(is_dense) + 1) if _every(step, first, last) == sparse)
    return {
        **dict.fromkeys(_DENSE_FIRST, first),
        "mlp_only_layers": [index for index, dense in enumerate(is_dense) if dense],
        "decoder_sparse_step": 1,
        "moe_layers": sparse,
        "moe_layer_start_index": first,
        "moe_layer_end_index": last,
        "moe_layer_interval": next(steps, 1),
    }


def _every(step: int, first: int, last: int) -> list[int]:
    """Layers that have experts by ERNIE's three numbers."""
    return [layer for layer in range(first, last + 1) if (layer + 1) % step == 0]


def with_experts(config: Mapping[str, Any], experts: int) -> dict[str, Any]:
    """The entries of ``config`` that are others where a token goes to at most so many experts of a mixture."""
    given = {name: config[name] for name in _CHOSEN if config.get(name) is not None}
    return {
        name: [min(one, experts) for one in value] if isinstance(value, list) else min(value, experts)
        for name, value in given.items()
    }


def drafting_with(plan: DecoderPlan, experts: int | None) -> DecoderPlan:
    """The plan of the same model where a token goes to at most so many experts; None: to as many as it does."""
    if experts is None:
        return plan
    layers = tuple(
        replace(layer, mlp=replace(layer.mlp, chosen=min(layer.mlp.chosen, experts)))
        if isinstance(layer.mlp, ExpertsPlan)
        else layer
        for layer in plan.layers
    )
    return replace(plan, layers=layers)


def _known(layer: int | None) -> int:
    assert layer is not None, "only whole blocks have a configuration"
    return layer


def unlike(plan: DecoderPlan, made: DecoderPlan, blocks: Sequence[LayerBlock]) -> str:
    """How a model of the plan ``made`` differs from what is left of ``plan`` in ``blocks``; empty where in nothing."""
    if len(made.layers) != len(blocks):
        return f"it would have {len(made.layers)} layers, not {len(blocks)}"
    for number, (block, layer) in enumerate(zip(blocks, made.layers, strict=True)):
        attention, mlp = plan.layers[_known(block.attention)], plan.layers[_known(block.mlp)]
        if block.attention != block.mlp and BlockOrder.PARALLEL in (attention.order, mlp.order):
            return f"its attentions and MLPs run side by side, so that {block} are no layer"
        wanted = LayerPlan(attention=attention.attention, mlp=mlp.mlp, order=attention.order)
        if found := difference(wanted, layer):
            return f"layer {number} of it, {block}, would have another {found}"
    used = {name: table for name, table in plan.ropes.items() if name in made.ropes}
    found = difference(replace(plan, layers=(), ropes=used), replace(made, layers=()))
    return f"it would have another {found}" if found else ""


def difference(ours: Any, theirs: Any, at: str = "plan") -> str:
    """Where two plans first differ, as ``attention.reach.size``; empty where nowhere."""
    if ours == theirs:
        return ""
    if type(ours) is not type(theirs) or not is_dataclass(ours):
        return at.partition(".")[2] or at
    parts = (difference(getattr(ours, f.name), getattr(theirs, f.name), f"{at}.{f.name}") for f in fields(ours))
    return next(part for part in parts if part)
