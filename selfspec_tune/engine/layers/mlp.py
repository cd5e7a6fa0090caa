"""MLPs by their plans: gated or plain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.norm import Norm
from selfspec_tune.engine.layers.sublayer import BaseSubLayer, Stream
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import MlpPlan
from selfspec_tune.plans.mlp import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda values: F.gelu(values, approximate="tanh"),
    Activation.RELU: torch.relu,
    Activation.RELU2: lambda values: torch.relu(values).square_(),
}


def activation_of(plan: MlpPlan, bound: BoundModel, layer: int) -> Callable[[Tensor], Tensor]:
    """What ``plan`` computes between its linear layers; gives a tensor of its own."""
    if plan.activation is Activation.XIELU:  # by the module itself, for its numbers are learned
        assert plan.activation_path is not None
        module: Callable[[Tensor], Tensor] = bound.module(plan.activation_path, layer)
        return module
    return ACTIVATIONS[plan.activation]


class Mlp(BaseSubLayer):
    """Norm, input (gate and up in one, gate first), activation, output, residual.

    ``projections``: the input [2 width, or width of a plain one, …] and the output.
    """

    def __init__(self, plan: MlpPlan, bound: BoundModel, layer: int) -> None:
        modules = [bound.module(path, layer) for path in plan.inputs]
        into = Dense.of(*modules, is_transposed=plan.is_transposed)
        out = Dense.of(bound.module(plan.output, layer), is_transposed=plan.is_transposed)
        super().__init__(plan, bound, layer, (into, out))
        self.plan = plan
        self.width = plan.width
        self.inner = None if plan.inner is None else Norm(plan.inner, bound, layer)
        self.activate = activation_of(plan, bound, layer)

    def __call__(self, stream: Stream, start: int) -> Stream:
        return self._add(stream, self.compute(self._read(stream)))

    def compute(self, hidden: Tensor) -> Tensor:
        """What it gives for normalised hidden states [tokens, width]: neither normalised after nor added."""
        into, out = self._linear
        values = into(hidden)
        if self.plan.is_gated:
            values = self.activate(values[:, : self.width]).mul_(values[:, self.width :])
        else:
            values = self.activate(values)
        return out(values if self.inner is None else self.inner(values))
