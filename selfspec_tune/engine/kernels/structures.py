"""A decoder as the kernels read it: its plan and its tensors as structures.

weights, and the layers with their plans ─► structures ─► one array of addresses a pass
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_tune.engine.kernels.binding import (
    ActivationStruct,
    AttentionStruct,
    ExpertsStruct,
    HeadStruct,
    Kind,
    Linear,
    MlpStruct,
    NormStruct,
    RopeTable,
    SubLayerStruct,
)
from selfspec_tune.engine.kernels.weights import FORMATS, NativeCopy
from selfspec_tune.engine.layers.attention import Attention
from selfspec_tune.engine.layers.cache import CacheState
from selfspec_tune.engine.layers.experts import Experts
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.mlp import Mlp
from selfspec_tune.engine.layers.norm import HeadNorm, Norm
from selfspec_tune.engine.layers.sublayer import SubLayer
from selfspec_tune.plans import BlockOrder, DecoderPlan
from selfspec_tune.plans.attention import AlibiPlan, GrowthPlan, QkNormKind, ReachKind, RopePairs, WeightOrder
from selfspec_tune.plans.mlp import Activation, Score
from selfspec_tune.plans.norm import NormKind

# As the enumerations of the C sources have them.
_NORMS = {NormKind.RMS: 1, NormKind.LAYER: 2}
_REACHES = {ReachKind.FULL: 0, ReachKind.WINDOW: 1, ReachKind.CHUNK: 2}
_QK_NORMS = {QkNormKind.HEAD: 0, QkNormKind.EACH_HEAD: 1, QkNormKind.WIDTH: 2}
_ACTIVATIONS = {
    Activation.SILU: 0,
    Activation.GELU: 1,
    Activation.GELU_TANH: 2,
    Activation.RELU: 3,
    Activation.RELU2: 4,
    Activation.XIELU: 5,
}


class Described:
    """Structures over tensors that live as long as they do."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def sublayer(self, plan: DecoderPlan, module: SubLayer, copies: Sequence[NativeCopy] = ()) -> SubLayerStruct:
        """A sub-layer of a decoder with its own weights or their ``copies``."""
        made = SubLayerStruct(
            layer=module.layer,
            is_parallel=plan.layers[module.layer].order is BlockOrder.PARALLEL,
            residual_scale=module.plan.residual_scale,
            norm=self.norm(module.norm),
            post=self.norm(module.post),
        )
        if isinstance(module, Experts):
            made.kind, made.experts = Kind.EXPERTS, self._experts(module, copies or module.projections)
            return made
        into, out, *gate = copies or module.projections
        if isinstance(module, Attention):
            made.kind, made.inner = Kind.ATTENTION, self.norm(module.inner)
            made.first, made.second = self.linear(into), self.linear(out)
            if gate:
                made.third = self.linear(*gate)
            made.attention = self._attention(plan, module)
            return made
        assert isinstance(module, Mlp)
        made.kind, made.inner = Kind.MLP, self.norm(module.inner)
        made.first, made.third = self.linear(into, 0, module.width), self.linear(out)
        if module.plan.is_gated:
            made.second = self.linear(into, module.width, module.width)
        made.mlp = MlpStruct(module.plan.is_gated, _activation(module))
        return made

    def _experts(self, module: Experts, projections: Sequence[Dense | NativeCopy]) -> int:
        """Address of a mixture's own structure."""
        plan, router, shared = module.plan, module.plan.router, module.shared
        logits, choice_bias = module.router.stored, module.router.choice_bias
        made = ExpertsStruct(
            count=plan.count,
            chosen=module.chosen,
            is_sigmoid=router.score is Score.SIGMOID,
            is_chosen_first=router.is_chosen_first,
            groups=router.groups,
            kept_groups=router.kept_groups,
            is_renormalised=router.renormalise,
            rounds_logits=not router.is_float32 and logits.weight.dtype != torch.float32,
            rounds_weights=router.is_rounded,
            least_sum=router.least_sum,
            sum_epsilon=router.sum_epsilon,
            scale=router.scale,
            activation=ActivationStruct(_ACTIVATIONS[plan.activation]),
            choice_bias=None if choice_bias is None else self.floats(choice_bias),
            width=plan.width,
            router=self.linear(logits),
            gate_up=self.linear(projections[0]),
            down=self.linear(projections[1]),
        )
        if shared is not None:
            into, out = projections[2:]
            made.has_shared, made.shared_activation = True, _activation(shared)
            made.shared_gate = self.linear(into, 0, shared.width)
            made.shared_up = self.linear(into, shared.width, shared.width)
            made.shared_down = self.linear(out)
        if module.shared_gate is not None:
            made.has_shared_weight, made.shared_weight = True, self.linear(module.shared_gate)
        self._kept.append(made)
        return ctypes.addressof(made)

    def _attention(self, decoder: DecoderPlan, module: Attention) -> AttentionStruct:
        plan = module.plan
        made = AttentionStruct(
            heads=plan.num_heads,
            kv_heads=plan.num_kv_heads,
            size=plan.head_size,
            is_grouped=plan.order is WeightOrder.GROUPED,
            reach=_REACHES[plan.reach.kind],
            reach_size=plan.reach.size,
            rope=-1,
            growth=_number(plan.growth, _by_position(decoder)),
            bias=_number(plan.alibi, _by_position(decoder)),
            rounds_scores=plan.rounds_scores,
            scale=plan.scale,
            cap=plan.cap or 0.0,
            clip=plan.clip or 0.0,
        )
        if plan.rope is not None:
            made.rope = list(decoder.ropes).index(plan.rope.table)
            made.is_adjacent = plan.rope.pairs is RopePairs.ADJACENT
            made.is_rope_float = plan.rope.in_float32
        if plan.qk_norm is not None and module.qk_norms is not None:
            made.qk_norm, made.is_qk_norm_late = _QK_NORMS[plan.qk_norm.kind], plan.qk_norm.is_after_rope
            made.query_norm, made.key_norm = map(self.norm, module.qk_norms)
        if module.sinks is not None:
            made.sinks = self.floats(module.sinks)
        return made

    def norm(self, norm: Norm | HeadNorm | None) -> NormStruct:
        """A norm, or what stands for none."""
        if norm is None:
            return NormStruct()
        is_late = norm.plan.is_late or norm.plan.kind is NormKind.LAYER
        numbers = (None if tensor is None else self.floats(tensor) for tensor in (norm.weight, norm.bias))
        return NormStruct(_NORMS[norm.plan.kind], is_late, norm.epsilon, *numbers)

    def ropes(self, plan: DecoderPlan, state: CacheState) -> int:
        """Address of a decoder's tables of rotary positions in its own order."""
        array = (RopeTable * len(plan.ropes))()
        for number, name in enumerate(plan.ropes):
            if name in state.tables:
                cos, signed_sin = state.tables[name]
                array[number] = RopeTable(self.floats(cos), self.floats(signed_sin), cos.shape[-1])
        self._kept.append(array)
        return ctypes.addressof(array)

    def tables(self, plan: DecoderPlan, state: CacheState) -> int:
        """Address of the other tables by position, in the order of `_by_position`."""
        found = [
            self.floats(state.growth[each] if isinstance(each, GrowthPlan) else state.biases[each])
            for each in _by_position(plan)
        ]
        array = (ctypes.c_void_p * len(found))(*found)
        self._kept.append(array)
        return ctypes.addressof(array)

    def linear(self, layer: Dense | NativeCopy, start: int = 0, rows: int | None = None) -> Linear:
        """A linear layer, or ``rows`` outputs of it from ``start``."""
        if isinstance(layer, NativeCopy):
            self._kept.append(layer)
            return layer.structure(start, rows)
        end = None if rows is None else start + rows
        weight = layer.weight[start:end]
        if not weight.is_contiguous():
            raise ValueError("the kernels read contiguous weights only")
        self._kept.append(weight)
        bias = None if layer.bias is None else self.floats(layer.bias[start:end])
        return Linear(FORMATS[weight.dtype], 0, *weight.shape, weight.data_ptr(), None, bias)

    def floats(self, tensor: Tensor) -> int:
        """Address of a float32 copy of a small tensor."""
        copy = tensor.detach().to(torch.float32, copy=True).contiguous()
        self._kept.append(copy)
        return copy.data_ptr()


def _by_position(plan: DecoderPlan) -> list[GrowthPlan | AlibiPlan]:
    """What depends on positions beside rotations, each once."""
    attentions = [layer.attention for layer in plan.layers]
    found = [each for attention in attentions for each in (attention.growth, attention.alibi) if each is not None]
    return list(dict.fromkeys(found))


def _number(what: GrowthPlan | AlibiPlan | None, tables: Sequence[GrowthPlan | AlibiPlan]) -> int:
    return -1 if what is None else tables.index(what)


def _activation(module: Mlp) -> ActivationStruct:
    """What an MLP computes between its linear layers, with the numbers that it has learned."""
    numbers = (ctypes.c_float * 4)()
    if module.plan.activation is Activation.XIELU:
        learned: Any = module.activate
        numbers[:] = [
            float(F.softplus(learned.alpha_p)),
            float(learned.beta + F.softplus(learned.alpha_n)),
            float(learned.beta),
            float(learned.eps),
        ]
    return ActivationStruct(_ACTIVATIONS[module.plan.activation], numbers)


@dataclass(frozen=True, slots=True)
class Stack:
    """What a pass runs through, as the kernels read it. ``kept``: all that its addresses point into."""

    sublayers: ctypes.Array[ctypes.c_void_p]
    head: HeadStruct
    kept: tuple[Any, ...]

    @classmethod
    def of(cls, sublayers: Iterable[tuple[Described, SubLayerStruct]], head: Dense | NativeCopy) -> Stack:
        """Described sub-layers in running order, and then the head."""
        kept, described = tuple(sublayers), Described()
        first = HeadStruct(described.linear(head))
        return cls(_pointers([sublayer for _, sublayer in kept]), first, (*kept, described))

    def beside(self, others: Dense, ids: Tensor) -> Stack:
        """The same with a head that has ``others`` too, the rows of ``ids`` [ids]."""
        described = Described()
        head = HeadStruct(self.head.first, described.linear(others), ids.data_ptr())
        return Stack(self.sublayers, head, (*self.kept, described, ids))


def _pointers(sublayers: Sequence[SubLayerStruct]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of the structures' addresses; the structures must outlive it."""
    return (ctypes.c_void_p * len(sublayers))(*(ctypes.addressof(sublayer) for sublayer in sublayers))
