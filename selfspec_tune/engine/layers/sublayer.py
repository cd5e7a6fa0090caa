"""What attentions, MLPs and mixtures of experts share: the stream, norms around them, and their linear layers."""

from __future__ import annotations

from copy import copy
from typing import NamedTuple, Protocol, Self

from torch import Tensor

from selfspec_tune.engine.layers.linear import Dense, Projection
from selfspec_tune.engine.layers.norm import Norm
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import AttentionPlan, BlockOrder, ExpertsPlan, MlpPlan


class Stream(NamedTuple):
    """The residual stream, and what an MLP beside its attention reads instead of it.

    ``hidden`` [tokens, width]; ``layer_input`` [tokens, width]: the input of layer number ``layer``, whose attention
    ran last. None where no MLP needs it.
    """

    hidden: Tensor
    layer_input: Tensor | None = None
    layer: int = -1


class SubLayer(Protocol):
    """An attention, an MLP or a mixture of experts with its norms and residual.

    ``projections`` are the model's own linear layers; `with_projections` computes with others.
    """

    @property
    def plan(self) -> AttentionPlan | MlpPlan | ExpertsPlan: ...

    layer: int
    norm: Norm | None
    post: Norm | None
    projections: tuple[Dense, ...]

    def __call__(self, stream: Stream, start: int) -> Stream:
        """Pass a stream on, its tokens following ``start`` positions of the cache."""

    def with_projections(self, *projections: Projection) -> Self:
        """This sub-layer computing with other linear layers; cache and norms are shared."""


class BaseSubLayer:
    """A sub-layer but for what it computes: how it reads the stream, and how it adds to it."""

    projections: tuple[Dense, ...]

    def __init__(
        self, plan: AttentionPlan | MlpPlan | ExpertsPlan, bound: BoundModel, layer: int, projections: tuple[Dense, ...]
    ) -> None:
        self.layer = layer
        self.norm = None if plan.norm is None else Norm(plan.norm, bound, layer)
        self.post = None if plan.post is None else Norm(plan.post, bound, layer)
        self.projections = projections
        self._linear: tuple[Projection, ...] = projections
        self._residual_scale = plan.residual_scale
        self._is_parallel = bound.plan.layers[layer].order is BlockOrder.PARALLEL
        self._is_attention = isinstance(plan, AttentionPlan)

    def with_projections(self, *projections: Projection) -> Self:
        other = copy(self)
        other._linear = projections
        return other

    def _read(self, stream: Stream) -> Tensor:
        """What it computes with [tokens, width]: the stream, or the layer's input, normalised."""
        hidden = stream.hidden
        if self._is_parallel and stream.layer == self.layer and stream.layer_input is not None:
            hidden = stream.layer_input
        return hidden if self.norm is None else self.norm(hidden)

    def _add(self, stream: Stream, output: Tensor) -> Stream:
        """The stream with what was computed."""
        if self.post is not None:
            output = self.post(output)
        if self._residual_scale != 1:
            output = output * self._residual_scale
        if self._is_parallel and self._is_attention:
            return Stream(stream.hidden + output, stream.hidden, self.layer)
        return Stream(stream.hidden + output)
