"""Which tensor of a checkpoint belongs to which sub-layer, and what is left when a skip set is left out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from selfspec_tune.checks import shown
from selfspec_tune.draft.skip_set import MOST_LAYERS, SkipSet
from selfspec_tune.draft.sublayer import SubLayerId, SubLayerKind, sublayers_of
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.export.checkpoint import Checkpoint

NO_SUCH_MODEL = (ValueError, StrictDataclassError)  # what transformers raises of a configuration
_ATTENTION_NORM, _MLP_NORM = "input_layernorm", "post_attention_layernorm"
_LLAMA_ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
_LLAMA_MLP = frozenset({"gate_proj", "up_proj", "down_proj"})


@dataclass(frozen=True, slots=True)
class LayerBlock:
    """A layer of the draft: the source layers that its attention and its MLP come from; None where it has none."""

    attention: int | None
    mlp: int | None

    @property
    def is_whole(self) -> bool:
        """Whether it has both."""
        return self.attention is not None and self.mlp is not None

    def __str__(self) -> str:
        parts = [f"attention {self.attention}"] if self.attention is not None else []
        return " + ".join(parts + ([f"MLP {self.mlp}"] if self.mlp is not None else []))


def surviving_blocks(skip_set: SkipSet) -> list[LayerBlock]:
    """The sub-layers that stay, in running order, every attention paired with the MLP that follows it.

    "MLP 3 and attention 4 skipped" leaves attention 3 and MLP 4, which make one ordinary layer: in a pre-norm model
    whose rotary embedding and window do not depend on the layer, it computes the same.
    """
    blocks: list[LayerBlock] = []
    pending: int | None = None
    for (kind, layer), is_skipped in zip(sublayers_of(skip_set.num_layers), skip_set.to_flags(), strict=True):
        if is_skipped:
            continue
        if kind is SubLayerKind.MLP:
            blocks.append(LayerBlock(pending, layer))
            pending = None
            continue
        if pending is not None:
            blocks.append(LayerBlock(pending, None))
        pending = layer
    return blocks if pending is None else [*blocks, LayerBlock(pending, None)]


def partial(blocks: list[LayerBlock]) -> list[LayerBlock]:
    """Those that lack their attention or their MLP."""
    return [block for block in blocks if not block.is_whole]


@dataclass(frozen=True, slots=True)
class Outline:
    """The modules of a model: ``layers`` is the path of its layers, ``attention`` and ``mlp`` are their children.

    ``config``: the model's configuration with every default filled in; ``model``: an empty one of that kind.
    """

    layers: str
    attention: str
    mlp: str
    num_layers: int
    config: Mapping[str, Any]
    model: Any


@dataclass(frozen=True, slots=True)
class Layout(Outline):
    """An outline with the ``names`` of a checkpoint's tensors, which are those of the model's modules."""

    names: tuple[str, ...]

    def of_layer(self, layer: int) -> Iterator[tuple[str, str]]:
        """(name, name within the layer) of a layer's tensors."""
        prefix = f"{self.layers}.{layer}."
        return ((name, name.removeprefix(prefix)) for name in self.names if name.startswith(prefix))

    @property
    def outside(self) -> list[str]:
        """Tensors of no layer: embeddings, last norm, head."""
        return [name for name in self.names if not re.match(rf"{re.escape(self.layers)}\.\d+\.", name)]

    def is_of(self, name: str, sublayer: int) -> bool:
        """Whether a tensor is one of the sub-layer number ``sublayer`` itself."""
        kind, layer = SubLayerId.of(sublayer)
        return name.startswith(f"{self.layers}.{layer}.{self.mlp if kind is SubLayerKind.MLP else self.attention}.")

    @property
    def difference(self) -> str:
        """How a layer differs from a Llama's, biases apart: "has …" or "lacks …"; empty where in nothing."""
        own = {rest for _, rest in self.of_layer(0)}
        more = sorted(rest for rest in own if not _is_llamas(rest))
        less = [norm for norm in (_ATTENTION_NORM, _MLP_NORM) if f"{norm}.weight" not in own]
        return f"has {', '.join(more[:3])}" if more else f"lacks {', '.join(less)}" if less else ""

    def renamed(self, blocks: Sequence[LayerBlock]) -> Iterator[tuple[str, str]]:
        """(new name, name in the checkpoint) of every tensor of a model of ``blocks``.

        Raises `UnsupportedModelError` where a block takes its halves from two layers, or has one half only, and the
        model's norms are not known to belong to one of them.
        """
        if self.difference and any(block.attention != block.mlp for block in blocks):
            raise UnsupportedModelError(
                f"A layer of this model {self.difference}, unlike a Llama's, so its halves cannot be joined anew. "
                "Skip whole layers, or use `to` hf-zero."
            )
        for name in self.outside:
            yield name, name
        for number, block in enumerate(blocks):
            prefix = f"{self.layers}.{number}"
            if block.attention == block.mlp:
                assert block.attention is not None
                yield from ((f"{prefix}.{rest}", name) for name, rest in self.of_layer(block.attention))
                continue
            for layer, own in ((block.attention, self._is_attentions), (block.mlp, self._is_mlps)):
                if layer is not None:
                    yield from ((f"{prefix}.{rest}", name) for name, rest in self.of_layer(layer) if own(rest))

    def _is_attentions(self, rest: str) -> bool:
        return rest.split(".")[0] in (self.attention, _ATTENTION_NORM)

    def _is_mlps(self, rest: str) -> bool:
        return rest.split(".")[0] in (self.mlp, _MLP_NORM)

    def config_of(self, blocks: Sequence[LayerBlock], given: Mapping[str, Any]) -> dict[str, Any]:
        """``given``, the checkpoint's configuration, for a model of whole ``blocks``; entries by layer follow them."""
        name_of_depth = self.model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        config = {**without_code(given), name_of_depth: len(blocks)}
        for name, value in self.config.items():
            if isinstance(value, list) and len(value) == self.num_layers:
                config[name] = [value[block.attention or 0] for block in blocks]
        return config


def read_outline(folder: Path) -> Outline:
    """The outline of the model in ``folder``, from its configuration alone.

    Raises `UnsupportedModelError` where transformers has no such model, or its sub-layers cannot be told apart.
    """
    from transformers import AutoConfig

    from selfspec_tune.models.sublayers import find_sublayers

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        depth = getattr(config.get_text_config(), "num_hidden_layers", 1)
        if not isinstance(depth, int) or depth > MOST_LAYERS:  # before so many are built
            raise UnsupportedModelError(
                f"{folder / 'config.json'} states {shown(depth)} layers; expected {MOST_LAYERS} at most."
            )
        model = empty_model(config)
    except NO_SUCH_MODEL as error:
        raise UnsupportedModelError(
            f"transformers has no model for {folder / 'config.json'}, or only by code that comes with it, which an "
            f"export does not run ({str(error).splitlines()[0]})."
        ) from error
    found = find_sublayers(model)
    layers, _, rest = found.names[0].partition(".0.")
    mlp = found.names[1].rpartition(".")[2]
    return Outline(layers, rest, mlp, found.num_layers, config.to_dict(), model)


def empty_model(config: Any) -> Any:
    """A model without weights. Raises what its class raises of a configuration that it cannot be made from."""
    import torch
    from transformers import AutoModelForCausalLM

    from selfspec_tune.models.loading_output import quietly

    with quietly(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def read_layout(checkpoint: Checkpoint, outline: Outline) -> Layout:
    """The outline with the checkpoint's names.

    Raises `UnsupportedModelError` where its tensors are named otherwise than the model's modules.
    """
    parts = {field.name: getattr(outline, field.name) for field in fields(outline)}
    layout = Layout(**parts, names=tuple(checkpoint.tensors))
    missing = sorted({name for name, _ in outline.model.named_parameters()} - set(layout.names))
    if missing:
        raise UnsupportedModelError(
            f"{checkpoint.folder} has no tensor {missing[0]}: its weights are stored under other names than the "
            "model's modules, so they cannot be taken apart. Load it with transformers and save it again, or, where "
            "that changes nothing, use `to` transformers-generate, which takes no weights."
        )
    return layout


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that leads to no code of a checkpoint's own: transformers knows every model written here."""
    return {name: value for name, value in config.items() if name != "auto_map"}


def _is_llamas(rest: str) -> bool:
    parts = rest.split(".")
    if parts[-1] not in ("weight", "bias"):
        return False
    if len(parts) == 2:
        return parts[0] in (_ATTENTION_NORM, _MLP_NORM) and parts[1] == "weight"
    return len(parts) == 3 and (
        (parts[0] == "self_attn" and parts[1] in _LLAMA_ATTENTION) or (parts[0] == "mlp" and parts[1] in _LLAMA_MLP)
    )
