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
from selfspec_tune.draft.sublayer import sublayers_of
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.export.blocks import LayerBlock
from selfspec_tune.export.checkpoint import Checkpoint
from selfspec_tune.export.restated import restated, with_experts
from selfspec_tune.export.stored_names import StoredNames
from selfspec_tune.plans import BlockOrder, Claim, ClaimKind, DecoderPlan, claims

NO_SUCH_MODEL = (ValueError, StrictDataclassError)  # what transformers raises of a configuration


@dataclass(frozen=True, slots=True)
class Outline:
    """The modules of a model, by its configuration alone.

    Attributes:
        layers: the path of its layers.
        silence: of each sub-layer, in running order, the modules whose output, zeroed, leaves it out.
        config: its configuration with every default filled in.
        model: an empty one of that kind.
        plan: what it computes; None where ``unplanned`` says why that is not known.
    """

    layers: str
    silence: tuple[tuple[str, ...], ...]
    config: Mapping[str, Any]
    model: Any
    plan: DecoderPlan | None
    unplanned: str

    @property
    def num_layers(self) -> int:
        return len(self.silence) // 2

    @property
    def planned(self) -> DecoderPlan:
        """Its plan. Raises `UnsupportedModelError` where there is none."""
        if self.plan is None:
            raise UnsupportedModelError(
                f"Its layers cannot be taken apart: {self.unplanned}. Use `to` hf-zero or `to` transformers-generate."
            )
        return self.plan


@dataclass(frozen=True, slots=True)
class Layout(Outline):
    """An outline with the tensors of a checkpoint: their ``names`` there, and what claims each within a sub-layer."""

    names: StoredNames
    claims: Mapping[str, Claim]

    def zeroed(self, skip_set: SkipSet) -> Iterator[str]:
        """The stored tensors to be zero for the model to compute what is left: all of a sub-layer's but its norms.

        The other one may read the stream through the same norm; and of nothing, a norm without a bias makes nothing.
        """
        sublayers = zip(sublayers_of(self.num_layers), skip_set.to_flags(), strict=True)
        skipped = {sublayer for sublayer, is_skipped in sublayers if is_skipped}
        for name, claim in self.claims.items():
            if claim.owner in skipped and claim.kind not in (ClaimKind.NORM, ClaimKind.NORMS):
                yield name

    def renamed(self, blocks: Sequence[LayerBlock], *, as_modules: bool = False) -> Iterator[tuple[str, str]]:
        """(new name, name in the checkpoint) of every tensor of a model of ``blocks``.

        New names are as the checkpoint has them; or, ``as_modules``, as the model's modules do, which takes a model
        without packed tensors.

        Raises `UnsupportedModelError` where a block takes its sub-layers from two layers, or has only one, and the
        model has no plan or runs them side by side.
        """
        self._check_joined(blocks)
        by_layer: dict[int | None, list[str]] = {}
        for name in self.names.stored:
            by_layer.setdefault(self._layer_of(name), []).append(name)
        for name in by_layer.get(None, []):
            yield self.names.of.get(name, name) if as_modules else name, name
        for number, block in enumerate(blocks):
            for layer in {block.attention, block.mlp} - {None}:
                loaded = [name for name in by_layer.get(layer, []) if name in self.names.of]
                own = loaded if block.attention == block.mlp else [name for name in loaded if self._is_in(name, block)]
                yield from ((self.names.renumbered(name, self.layers, number, as_modules), name) for name in own)

    def _layer_of(self, name: str) -> int | None:
        found = re.match(rf"{re.escape(self.layers)}\.(\d+)\.", self.names.of.get(name, name))
        return int(found[1]) if found else None

    def _is_in(self, name: str, block: LayerBlock) -> bool:
        owner = self.claims[name].owner
        assert owner is not None
        return owner.layer == (block.attention if owner.is_attention else block.mlp)

    def _check_joined(self, blocks: Sequence[LayerBlock]) -> None:
        joined = [block for block in blocks if block.attention != block.mlp]
        if joined and any(layer.order is BlockOrder.PARALLEL for layer in self.planned.layers):
            raise UnsupportedModelError(
                f"The attention and the MLP of a layer of this model read the same input side by side, so {joined[0]} "
                "are no layer of it. Skip whole layers, or use `to` hf-zero or `to` transformers-generate."
            )

    def config_of(
        self, blocks: Sequence[LayerBlock], given: Mapping[str, Any], experts: int | None = None
    ) -> dict[str, Any]:
        """``given``, the checkpoint's configuration, for a model of whole ``blocks``; entries by layer follow them.

        ``experts``: those of each mixture that a token goes to; None: as many as it does.
        """
        config = without_code(given)
        whole, decoder = self.model.config, self.model.config.get_text_config()
        section = next((name for name, value in vars(whole).items() if value is decoder), None)
        if section is None:
            return self._restated(config, whole, blocks, experts)
        return config | {section: self._restated(config.get(section) or {}, decoder, blocks, experts)}

    def _restated(
        self, given: Mapping[str, Any], decoder: Any, blocks: Sequence[LayerBlock], experts: int | None
    ) -> dict[str, Any]:
        own = decoder.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        others = {"num_hidden_layers", *(name for name, real in decoder.attribute_map.items() if real == own)}
        kept = {name: value for name, value in given.items() if name not in others}
        entries = restated(decoder.to_dict(), self.num_layers, self.plan, blocks)
        if experts is not None:
            entries |= with_experts({**decoder.to_dict(), **entries}, experts)
        return {**kept, own: len(blocks), **entries}


def read_outline(folder: Path) -> Outline:
    """The outline of the model in ``folder``, from its configuration alone.

    Raises `UnsupportedModelError` where transformers has no such model, or its sub-layers cannot be told apart.
    """
    from transformers import AutoConfig

    from selfspec_tune.models.bound import bind
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
    plan, unplanned = None, ""
    try:
        plan = bind(model).plan
    except UnsupportedModelError as error:
        unplanned = str(error)
    paths = {module: path for path, module in model.named_modules()}
    silence = tuple(tuple(paths[module] for module in modules) for modules in found.silence)
    return Outline(paths[found.layers], silence, config.to_dict(), model, plan, unplanned)


def empty_model(config: Any) -> Any:
    """A model without weights. Raises what its class raises of a configuration that it cannot be made from."""
    import torch

    from selfspec_tune.models.auto import AutoModelForCausalLM
    from selfspec_tune.models.loading_output import quietly

    with quietly(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that leads to no code of a checkpoint's own: transformers knows every model written here."""
    return {name: value for name, value in config.items() if name != "auto_map"}


def read_layout(checkpoint: Checkpoint, outline: Outline) -> Layout:
    """The outline with the checkpoint's tensors.

    Raises `UnsupportedModelError` where transformers would not load each of the model's from them.
    """
    names = StoredNames(outline.model, checkpoint.tensors)
    if names.missing:
        raise UnsupportedModelError(
            f"{checkpoint.folder} has no tensor {names.missing[0]}: its weights are stored under other names than "
            "transformers knows for its modules, so they cannot be taken apart. Load it with transformers and save it "
            "again, or, where that changes nothing, use `to` transformers-generate, which takes no weights."
        )
    parts = {field.name: getattr(outline, field.name) for field in fields(outline)}
    return Layout(**parts, names=names, claims=dict(_claimed(outline, names)))


def _claimed(outline: Outline, names: StoredNames) -> Iterator[tuple[str, Claim]]:
    """What claims each stored tensor; without a plan a sub-layer has what lies in the modules that silence it."""
    if outline.plan is not None:
        made = [claim for claim in claims(outline.plan) if claim.owner is not None]
    else:
        sublayers = zip(sublayers_of(outline.num_layers), outline.silence, strict=True)
        made = [Claim(path, ClaimKind.NUMBERS, sublayer) for sublayer, paths in sublayers for path in paths]
    by_path = {claim.path: claim for claim in made}
    for stored, name in names.of.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            claim = by_path.get(".".join(parts[:end]))
            if claim is not None and claim.covers(name):
                yield stored, claim
