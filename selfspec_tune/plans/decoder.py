"""A whole decoder as plain values: what our loops need to know of a model beside its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from selfspec_tune.draft.sublayer import SubLayerId
from selfspec_tune.plans.attention import AttentionPlan
from selfspec_tune.plans.mlp import ExpertsPlan, MlpPlan
from selfspec_tune.plans.norm import NormPlan


class BlockOrder(StrEnum):
    """What the MLP of a layer reads."""

    SEQUENTIAL = "sequential"  # the stream that the attention has been added to
    PARALLEL = "parallel"  # the layer's input, as the attention does


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """A layer: an attention and an MLP or experts. Skipping one of a parallel layer leaves x + the other(x)."""

    attention: AttentionPlan
    mlp: MlpPlan | ExpertsPlan
    order: BlockOrder = BlockOrder.SEQUENTIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingPlan:
    """Rows of a table, scaled, plus learned positions, normalised: in this order.

    Attributes:
        path: the embedding, within the model.
        scale: what rows are multiplied with.
        is_scale_rounded: whether the scale is rounded to the model's type before that.
        positions: the embedding of positions, within the model; ``offset`` is added to a position to find its row.
        norm: after both.
    """

    path: str
    scale: float = 1.0
    is_scale_rounded: bool = True
    positions: str | None = None
    offset: int = 0
    norm: NormPlan | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPlan:
    """Logits: the linear layer at ``path`` within the model, times ``scale``, then ``cap * tanh(logits / cap)``."""

    path: str = "lm_head"
    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeTable:
    """Angles: position times inverse frequencies; cosines and sines times a factor.

    Attributes:
        module: a module within the model that has both numbers; None: they follow from ``theta`` and the size.
        frequencies: its buffer [size / 2] of inverse frequencies.
        factor: its attribute that multiplies cosines and sines.
        is_reversed: whether angles are the negative of that: sines change their sign.
        theta: base of inverse frequencies ``theta ** (-2 i / size)``, with the factor 1.
        longest: positions up to which the table holds, beyond which the model computes by another; None: any. A
            model's context ends there.
    """

    module: str | None = None
    frequencies: str = "inv_freq"
    factor: str = "attention_scaling"
    is_reversed: bool = False
    theta: float | None = None
    longest: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderPlan:
    """What a decoder-only model computes, in this project's words. Holds no tensor, imports no torch.

    Attributes:
        model_type: transformers' name of the family.
        layers_path: the list of layers, within the model; paths of a `LayerPlan` are relative to one of them.
        hidden_size: width of the stream.
        norm: after the last layer.
        ropes: tables by name, as `RopePlan.table` gives it.
        beside: modules, within the model, that text never runs through, such as a vision tower.
    """

    model_type: str
    layers_path: str
    hidden_size: int
    embedding: EmbeddingPlan
    layers: tuple[LayerPlan, ...]
    norm: NormPlan | None
    head: HeadPlan = HeadPlan()
    ropes: Mapping[str, RopeTable] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def most_chosen(self) -> int:
        """To how many experts a token goes, where that is most; 0 without mixtures of experts."""
        return max((layer.mlp.chosen for layer in self.layers if isinstance(layer.mlp, ExpertsPlan)), default=0)

    def sublayer(self, sublayer: SubLayerId) -> AttentionPlan | MlpPlan | ExpertsPlan:
        """The plan of one sub-layer."""
        layer = self.layers[sublayer.layer]
        return layer.attention if sublayer.is_attention else layer.mlp

    def layer_path(self, layer: int) -> str:
        """Where layer number ``layer`` is, within the model."""
        return f"{self.layers_path}.{layer}"
