"""Mixtures of experts by their plans, over the packed weights of transformers 5.

A token's share of each expert it goes to is computed by itself and the shares are added in the order of rank, so what
comes out of a token does not depend on which other tokens pass with it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from selfspec_tune.engine.layers.cache import CachePlace
from selfspec_tune.engine.layers.linear import Dense, Projection, is_mapped, let_go, roomy
from selfspec_tune.engine.layers.mlp import ACTIVATIONS, Mlp
from selfspec_tune.engine.layers.router import Router
from selfspec_tune.engine.layers.sublayer import BaseSubLayer, Stream
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import ExpertsPlan

_MOST_TOKENS = 1024  # whose shares of all chosen experts are held at once
_ALIGNMENT = 16  # bytes: of rows that torch's grouped products read
_HOPPER = (9, 0)


class Bank(Protocol):
    """Linear layers of the same shape over one input, such as `Dense` with several parts, or a copy of it."""

    def part(self, number: int) -> Projection:
        """One of the layers, by its number from 0."""


class Experts(BaseSubLayer):
    """Norm, router, the chosen experts and what runs beside them, residual.

    ``projections``: input and output of all experts, one below the other: [experts * 2 width, hidden] and
    [experts * hidden, width], each with one part an expert; then those of the MLP beside them, where there is one.
    """

    def __init__(self, plan: ExpertsPlan, bound: BoundModel, layer: int) -> None:
        into, out = (
            _packed(bound, layer, path, is_transposed=plan.is_transposed) for path in (plan.gate_up, plan.down)
        )
        self.shared = None if plan.shared is None else Mlp(plan.shared, bound, layer)
        beside = () if self.shared is None else self.shared.projections
        super().__init__(plan, bound, layer, (into, out, *beside))
        self.plan = plan
        self.chosen = plan.chosen
        self._biases = [bound.tensor(path, layer) for path in plan.biases or ()]  # added after a product is rounded
        self.router = Router(plan.router, bound, layer)
        self.shared_gate = None if plan.shared_gate is None else Dense.of(bound.module(plan.shared_gate, layer))
        self._activate: Callable[[Tensor], Tensor] = ACTIVATIONS[plan.activation]

    def with_projections(self, *projections: Projection) -> Self:
        other = super().with_projections(*projections)
        if self.shared is not None:
            other.shared = self.shared.with_projections(*projections[2:])
        return other

    def with_chosen(self, chosen: int) -> Self:
        """This sub-layer, each token going to its ``chosen`` best experts, or to as many as in the model if fewer."""
        other = copy(self)
        other.chosen = min(chosen, self.plan.chosen)
        return other

    def __call__(self, stream: Stream, start: int) -> Stream:
        hidden = self._read(stream)
        routed = [self._routed(piece, self._share_of_each) for piece in hidden.split(_MOST_TOKENS)]
        return self._add(stream, self._beside(hidden, routed[0] if len(routed) == 1 else torch.cat(routed)))

    def at(self, stream: Stream, place: CachePlace) -> Stream:
        """Pass a stream on as a call does, with nothing read on the host, for a pass that is captured."""
        hidden = self._read(stream)
        share = self._share_in_groups if self._can_group else self._share_of_all
        return self._add(stream, self._beside(hidden, self._routed(hidden, share)))

    def _routed(self, hidden: Tensor, share: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The weighted sum [tokens, width] of what the chosen experts give; ``share`` computes each one's."""
        router, (num_tokens, width) = self.plan.router, hidden.shape
        experts, weights = self.router(hidden, self.chosen)
        weights = weights.flatten()[:, None]  # of pairs of a token and an expert, as all that follows
        if router.on_input or router.is_rounded:
            weights = weights.to(hidden.dtype)
        inputs = hidden.repeat_interleave(self.chosen, 0)
        shares = share(inputs * weights if router.on_input else inputs, experts.flatten())
        shares = shares if router.on_input else shares * weights
        by_rank = shares.view(num_tokens, self.chosen, width).float().unbind(1)
        total = by_rank[0]
        for other in by_rank[1:]:
            total = total + other
        return total.to(hidden.dtype)

    def _share_of_each(self, inputs: Tensor, experts: Tensor) -> Tensor:
        """[pairs, width] of inputs [pairs, width] by ``experts`` [pairs]: one expert after the other, read once."""
        order = experts.argsort(stable=True)
        counts: list[int] = torch.bincount(experts, minlength=self.plan.count).tolist()
        sorted_inputs = inputs[order]
        outputs, start = torch.empty_like(inputs), 0
        for expert, count in enumerate(counts):
            if count:
                outputs[order[start : start + count]] = self._expert(expert, sorted_inputs[start : start + count])
                start += count
        return outputs

    def _share_in_groups(self, inputs: Tensor, experts: Tensor) -> Tensor:
        """`_share_of_each` by torch's grouped products, which find each expert's rows on the device."""
        into, out = self.projections[:2]
        sorted_experts, order = experts.sort(stable=True)
        every = torch.arange(self.plan.count, device=experts.device)
        ends = torch.searchsorted(sorted_experts, every, right=True, out_int32=True)
        gated = self._gate(self._biased(0, sorted_experts, _grouped(into, inputs[order], ends)))
        outputs = self._biased(1, sorted_experts, _grouped(out, gated, ends))
        return torch.empty_like(outputs).index_copy_(0, order, outputs)

    def _share_of_all(self, inputs: Tensor, experts: Tensor) -> Tensor:
        """`_share_of_each` by every expert for every pair, of which the chosen one's is kept."""
        outputs = torch.zeros_like(inputs)
        for expert in range(self.plan.count):
            outputs = torch.where(experts[:, None] == expert, self._expert(expert, inputs), outputs)
        return outputs

    @property
    def _can_group(self) -> bool:
        """Whether torch has grouped products for these weights that wait for nothing."""
        weights = [dense.weight for dense in self.projections[:2]]
        if self._linear[:2] != self.projections[:2]:  # copies
            return False
        if any(weight.shape[1] * weight.itemsize % _ALIGNMENT for weight in weights):
            return False
        device, dtype = weights[0].device, weights[0].dtype
        # Elsewhere they ask the device how many rows each expert has.
        return device.type != "cuda" or (
            dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= _HOPPER
        )

    def _expert(self, number: int, hidden: Tensor) -> Tensor:
        linear = self._linear[:2]
        into, out = linear if self.plan.count == 1 else (cast(Bank, each).part(number) for each in linear)
        return self._biased(1, number, out(self._gate(self._biased(0, number, into(hidden)))))

    def _biased(self, place: int, experts: int | Tensor, outputs: Tensor) -> Tensor:
        """Outputs [tokens, width] of input layers (0) or output layers (1) with the bias of each one's expert."""
        return outputs + self._biases[place][experts] if self._biases else outputs

    def _gate(self, gate_up: Tensor) -> Tensor:
        """What the output layer reads [tokens, width], of [tokens, 2 width]."""
        plan = self.plan
        gate, up = (gate_up[:, ::2], gate_up[:, 1::2]) if plan.is_interleaved else gate_up.chunk(2, -1)
        if plan.clamp is not None:
            gate, up = gate.clamp(max=plan.clamp), up.clamp(-plan.clamp, plan.clamp)
        if plan.gate_slope is not None:
            return (up + 1) * (gate * torch.sigmoid(gate * plan.gate_slope))
        return self._activate(gate) * up

    def _beside(self, hidden: Tensor, routed: Tensor) -> Tensor:
        """``routed`` and what the MLP for every token gives."""
        if self.shared is None:
            return routed
        shared = self.shared.compute(hidden)
        if self.shared_gate is not None:
            shared = torch.sigmoid(self.shared_gate(hidden)) * shared
        return routed + shared


def _packed(bound: BoundModel, layer: int, path: str, *, is_transposed: bool) -> Dense:
    """The weights of all experts, one below the other.

    Those stored [experts, inputs, outputs] are turned, and the model's parameter becomes a view of what is held then:
    `model.generate` still runs and no weight is held twice.
    """
    owner, _, name = path.rpartition(".")
    parameter: Parameter = getattr(bound.module(owner, layer), name)
    weight = parameter.data.mT if is_transposed else parameter.data
    if not weight.is_contiguous() or is_mapped(weight):
        weight = roomy(weight.shape, weight.dtype, weight.device).copy_(weight)
        let_go(parameter.data)
        parameter.data = weight.mT if is_transposed else weight
    return Dense(weight.flatten(0, 1), None, parts=int(weight.shape[0]))


def _grouped(dense: Dense, inputs: Tensor, ends: Tensor) -> Tensor:
    """Inputs [pairs, width] by the part of each one's expert, whose pairs end at ``ends`` [experts]."""
    weight = dense.weight.unflatten(0, (dense.parts, -1)).mT
    outputs: Tensor = F.grouped_mm(inputs, weight, offs=ends)
    return outputs
