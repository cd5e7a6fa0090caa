"""Finds a decoder's attention and MLP sub-layers: by its plan, else by structure.

Self-speculative decoding leaves single sub-layers out of a residual stream, so
it needs, in every layer, exactly one attention and exactly one MLP (or
mixture of experts) whose output is *added* to the stream, and nothing else that
mixes channels or positions. The plan of a known family says which modules these
are. Of any other model, what fits this description works, and what does not is
refused.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from selfspec_tune.draft.sublayer import sublayers_of
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.plans import plan_of
from selfspec_tune.plans.refused import refused_reason
from selfspec_tune.plans.registry import FAMILIES

_ATTENTION_NAME = re.compile(r"attn|attention", re.IGNORECASE)
_MLP_NAME = re.compile(r"mlp|moe|ffn|feed_?forward", re.IGNORECASE)
_NORM_NAME = re.compile(r"norm|^ln_", re.IGNORECASE)
_QUERY_PROJECTIONS = frozenset(
    {"q_proj", "query", "q_a_proj", "wq", "qkv_proj", "Wqkv", "c_attn", "query_key_value", "qkv"}
)

WHAT_WORKS = (
    "What works: decoder-only models whose every layer has one attention and one MLP (or "
    "mixture-of-experts) module, such as the Llama, Qwen, Mistral, Gemma, Phi, GPT-2 and GPT-NeoX families: "
    "`selfspec-tune models` lists them"
)


@dataclass(frozen=True, slots=True)
class SubLayers:
    """The 2L sub-layers of a decoder with L layers, in running order.

    ``silence[2 * i]`` and ``silence[2 * i + 1]`` are the modules whose output, zeroed, leaves the attention and the
    MLP of ``layers[i]`` out, and ``names`` the dotted path of the first of each inside the model.
    """

    layers: nn.ModuleList
    silence: tuple[tuple[nn.Module, ...], ...]
    names: tuple[str, ...]

    @property
    def attention(self) -> tuple[nn.Module, ...]:
        """The first module of each attention's."""
        return tuple(modules[0] for modules in self.silence[::2])

    @property
    def mlp(self) -> tuple[nn.Module, ...]:
        """The first module of each MLP's."""
        return tuple(modules[0] for modules in self.silence[1::2])

    @property
    def num_layers(self) -> int:
        return len(self.layers)


def find_sublayers(model: PreTrainedModel) -> SubLayers:
    """Locate every layer's attention and MLP module.

    Raises:
        UnsupportedModelError: the model is an encoder–decoder, has layers of
            another kind (state-space, linear attention, convolution), or has
            no plan and does not keep its attention and MLP in one module each.
    """
    try:
        planned, reason = _planned(model), None
    except UnsupportedModelError as error:
        planned, reason = None, str(error)
    if planned is not None:
        return planned
    refuse_by_config(model.config, model)
    try:
        return _by_structure(model)
    except UnsupportedModelError as error:
        if reason is None or model.config.model_type not in FAMILIES:
            raise
        raise _unsupported(model, reason) from error  # what its family's plan says of it is plainer


def _by_structure(model: PreTrainedModel) -> SubLayers:
    """Sub-layers by the names and contents of modules. Raises `UnsupportedModelError` where those do not tell."""
    path, layers = _decoder_layers(model)
    names: list[str] = []
    for index, layer in enumerate(layers):
        where = f"{path}.{index}"
        names += [f"{where}.{name}" for name in _separate(model, layer, where)]
    return SubLayers(layers, tuple((model.get_submodule(name),) for name in names), tuple(names))


def _planned(model: PreTrainedModel) -> SubLayers | None:
    """Sub-layers by the plan; None where the model has other modules. Raises `UnsupportedModelError` without a plan."""
    plan = plan_of(model.config.to_dict())
    planned = [(sublayer.layer, plan.sublayer(sublayer).silence) for sublayer in sublayers_of(plan.num_layers)]
    names = [[f"{plan.layer_path(layer)}.{path}" for path in paths] for layer, paths in planned]
    try:
        layers = model.get_submodule(plan.layers_path)
        silence = tuple(tuple(model.get_submodule(name) for name in those) for those in names)
    except AttributeError:
        return None
    assert isinstance(layers, nn.ModuleList)
    return SubLayers(layers, silence, tuple(those[0] for those in names))


def _unsupported(model: nn.Module | str, reason: str) -> UnsupportedModelError:
    name = model if isinstance(model, str) else type(model).__name__
    return UnsupportedModelError(f"{name} cannot draft for itself: {reason}. {WHAT_WORKS}.")


def refuse_by_config(config: PreTrainedConfig, model: nn.Module | None = None) -> None:
    """Raise `UnsupportedModelError` where the configuration alone tells that its model cannot draft for itself."""
    stated = next(iter(config.architectures or ()), None) or f"A model of the architecture {config.model_type}"
    name = stated if model is None else model
    reason = refused_reason(config.to_dict())
    if reason is not None:
        raise _unsupported(name, reason)


def _decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The outermost ModuleList that is as long as the config's layer count and attends."""
    text: Any = model.config.get_text_config()
    expected = getattr(text, "num_hidden_layers", None)
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) == expected and not nested:
            found.append((name, module))
    attending = [(name, layers) for name, layers in found if _children_like_attention(layers[0])]
    if len(attending) == 1:
        return attending[0]
    if not attending:
        raise _unsupported(model, f"no stack of {expected} layers with attention modules was found in it")
    names = ", ".join(name for name, _ in attending)
    raise _unsupported(model, f"several stacks of {expected} layers could be its decoder ({names})")


def _separate(model: nn.Module, layer: nn.Module, where: str) -> tuple[str, str]:
    """Names of the layer's attention and MLP children, or a refusal."""
    attention = _children_like_attention(layer)
    mlp = [name for name in _children_like_mlp(layer) if name not in attention]
    for kind, found in (("attention", attention), ("MLP", mlp)):
        if len(found) != 1:
            some = f"{len(found)} ({', '.join(found)})" if found else "none"
            raise _unsupported(model, f"{where} should have exactly one {kind} module, but has {some}")
    rest = [name for name in _matrices(layer) if name.split(".")[0] not in (attention[0], mlp[0])]
    if rest:
        raise _unsupported(model, f"{where} has weights outside its attention and MLP: {', '.join(rest[:3])}")
    for name in (attention[0], mlp[0]):
        if "residual" in inspect.signature(layer.get_submodule(name).forward).parameters:
            raise _unsupported(model, f"{where}.{name} adds the residual itself, so it cannot be left out")
    return attention[0], mlp[0]


def _children_like_attention(layer: nn.Module) -> list[str]:
    return [
        name
        for name, child in layer.named_children()
        if _is_called(_ATTENTION_NAME, name, child) and _projects_queries(child)
    ]


def _children_like_mlp(layer: nn.Module) -> list[str]:
    return [
        name
        for name, child in layer.named_children()
        if _is_called(_MLP_NAME, name, child) and len(list(_matrices(child))) >= 2
    ]


def _is_called(pattern: re.Pattern[str], name: str, child: nn.Module) -> bool:
    """Whether the attribute or its class carries such a name, and the attribute is no norm."""
    return not _NORM_NAME.search(name) and bool(pattern.search(name) or pattern.search(type(child).__name__))


def _projects_queries(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in _QUERY_PROJECTIONS for name, _ in module.named_modules())


def _matrices(module: nn.Module) -> Iterator[str]:
    """Names of the weights with two dimensions or more: all but norms, biases and scales.

    Quantised layers may keep theirs packed into integers, as buffers; a mask is no such buffer.
    """
    yield from (name for name, parameter in module.named_parameters() if parameter.dim() >= 2)
    for name, buffer in module.named_buffers():
        if buffer.dim() >= 2 and not buffer.is_floating_point() and buffer.dtype != torch.bool:
            yield name
