"""Bytes that the engine's steps must read, counted over the loaded model's own tensors.

A step at batch 1 reads every weight of the sub-layers that run once, however many tokens it is over; of a mixture
of experts, those that its tokens go to. Activations are not counted. Which sub-layer owns a tensor, what an attention
sees and how many experts run the model's plan says; of a model without one its modules do, and all experts count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.draft.sublayer import SubLayerId, sublayers_of
from selfspec_tune.errors import UnsupportedModelError
from selfspec_tune.models import LoadedModel
from selfspec_tune.models.bound import BoundModel, bind
from selfspec_tune.plans import AttentionPlan, Claim, ClaimKind, ExpertsPlan, claims, sublayer_claims
from selfspec_tune.plans.attention import Reach

# Bytes of a weight in a low-precision copy; its scales, a few per cent more, are not counted.
_WEIGHT_BYTES = {Precision.INT8: 1.0, Precision.INT4: 0.5}
_EVERYTHING = Reach()
_LINEAR = (ClaimKind.LINEAR, ClaimKind.TRANSPOSED)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Matrices, which a copy may hold at lower precision, and the rest: norms, biases, routers."""

    num_matrix_weights: int = 0
    matrix_bytes: int = 0
    other_bytes: int = 0

    def bytes_at(self, precision: Precision) -> float:
        if precision is Precision.SAME:
            return self.matrix_bytes + self.other_bytes
        return self.num_matrix_weights * _WEIGHT_BYTES[precision] + self.other_bytes


@dataclass(frozen=True, slots=True)
class _Experts:
    """All routed experts of a sub-layer: how many there are, and how many of them a token goes to."""

    weights: _Weights
    count: int
    chosen: int

    def bytes_at(self, precision: Precision, num_tokens: int, chosen: int | None = None) -> float:
        """What a pass over so many tokens reads in the mean, were every choice of experts as likely as any other.

        An expert is one of k of E that a token goes to, so n tokens leave it unread with (1 − k/E)^n, and read
        E · (1 − (1 − k/E)^n) experts. Real texts choose less evenly, and read fewer.
        """
        share = min(chosen or self.chosen, self.chosen) / self.count
        return self.weights.bytes_at(precision) * (1 - (1 - share) ** num_tokens)


@dataclass(frozen=True, slots=True)
class _SubLayer:
    """A sub-layer: what each pass reads, routed experts apart, and what an attention caches at every position."""

    weights: _Weights
    experts: _Experts | None = None
    position: int = 0
    reach: Reach = _EVERYTHING

    def bytes_at(self, precision: Precision, context: int, num_tokens: int = 1, chosen: int | None = None) -> float:
        routed = 0.0 if self.experts is None else self.experts.bytes_at(precision, num_tokens, chosen)
        return self.weights.bytes_at(precision) + routed + self.position * self.reach.seen(context)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the parts of a model hold, in bytes.

    Attributes:
        sublayers: in running order, each with its norms.
        final: what every step reads beside them except the head: norms.
        row: one token's rows of the embedding and of learned positions.
        has_experts: whether any sub-layer is a mixture of experts; ``counts_all``: whether steps count all of them.
    """

    sublayers: tuple[_SubLayer, ...]
    head: _Weights
    head_rows: int
    final: int
    row: int
    has_experts: bool
    counts_all: bool

    @property
    def position(self) -> int:
        """Keys and values of one position in the caches of all layers."""
        return sum(each.position for each in self.sublayers)

    def full_step(self, context: int, num_tokens: int = 1) -> float:
        """Bytes of a full pass over ``num_tokens`` after ``context`` positions: decoding, or verification."""
        sublayers = sum(each.bytes_at(Precision.SAME, context, num_tokens) for each in self.sublayers)
        return sublayers + self.head.bytes_at(Precision.SAME) + self.final + num_tokens * self.row

    def draft_step(self, draft: Draft, context: int) -> float:
        """Bytes of one step of ``draft`` after ``context`` positions."""
        moved = self.head.bytes_at(draft.precision.head) * (draft.vocabulary or self.head_rows) / self.head_rows
        for sublayer, precision in draft.kept():
            moved += self.sublayers[sublayer.index].bytes_at(precision, context, chosen=draft.experts)
        return moved + self.final + self.row


def traffic_of(loaded: LoadedModel, dtype: torch.dtype | None = None) -> Traffic:
    """Count a model's bytes: as it is held, or, with ``dtype``, as if every value of it were unpacked and of that.

    A tied head is counted as a head; of the embedding only a row is read.
    """
    count = _Count(dtype)
    try:
        return _planned(bind(loaded.model), count)
    except UnsupportedModelError:
        return _by_structure(loaded, count)


@dataclass(frozen=True, slots=True)
class _Count:
    """How values are counted: as of ``dtype``; None: as they are held."""

    dtype: torch.dtype | None = None

    def bytes(self, tensors: Iterable[Tensor]) -> int:
        return sum(tensor.numel() * (self.dtype or tensor.dtype).itemsize for tensor in tensors)

    def parameters(self, module: nn.Module) -> list[Tensor]:
        """A module's parameters; with a ``dtype``, packed ones as empty tensors of the shape that they stand for."""
        if self.dtype is None:
            return list(module.parameters())
        return [tensor for part in module.modules() for tensor in _unpacked(part)]


_AS_HELD = _Count()


def _unpacked(part: nn.Module) -> list[Tensor]:
    own: list[Tensor] = list(part.parameters(recurse=False))
    rows, columns = (getattr(part, name, None) for name in ("out_features", "in_features"))
    if not isinstance(rows, int) or not isinstance(columns, int) or list(part.children()):
        return own
    if any(tensor.shape == (rows, columns) for tensor in own):
        return own
    return [*(tensor for tensor in own if tensor.dim() < 2), torch.empty(rows, columns, device="meta")]


def _planned(bound: BoundModel, count: _Count) -> Traffic:
    plan = bound.plan
    own = [claim for claim in claims(plan) if claim.owner is None]
    norms = [claim for claim in own if claim.kind is ClaimKind.NORM]
    tables = [claim for claim in own if claim.kind is ClaimKind.EMBEDDING]
    return Traffic(
        sublayers=tuple(_sublayer(bound, sublayer, count) for sublayer in sublayers_of(plan.num_layers)),
        head=_weights(bound, [claim for claim in own if claim.kind is ClaimKind.LINEAR], count),
        head_rows=int(bound.module(plan.head.path).weight.shape[0]),
        final=count.bytes(tensor for claim in norms for tensor in _tensors(bound, claim)),
        row=count.bytes(tensor[0] for claim in tables for tensor in _tensors(bound, claim)),
        has_experts=any(isinstance(layer.mlp, ExpertsPlan) for layer in plan.layers),
        counts_all=False,
    )


def _sublayer(bound: BoundModel, sublayer: SubLayerId, count: _Count) -> _SubLayer:
    plan, owned = bound.plan.sublayer(sublayer), list(sublayer_claims(bound.plan, sublayer))
    if isinstance(plan, AttentionPlan):
        position = 2 * plan.num_kv_heads * plan.head_size * (count.dtype or bound.model.dtype).itemsize
        return _SubLayer(_weights(bound, owned, count), position=position, reach=plan.reach)
    if not isinstance(plan, ExpertsPlan):
        return _SubLayer(_weights(bound, owned, count))
    names = (plan.gate_up, plan.down, *(plan.biases or ()))
    routed = {f"{bound.plan.layer_path(sublayer.layer)}.{name}" for name in names}
    return _SubLayer(
        _weights(bound, [claim for claim in owned if claim.path not in routed], count),
        _Experts(_weights(bound, [claim for claim in owned if claim.path in routed], count), plan.count, plan.chosen),
    )


def _weights(bound: BoundModel, owned: Iterable[Claim], count: _Count) -> _Weights:
    """What lies at ``owned``. Matrices are the weights of linear layers and those that experts stack in one tensor."""
    found = [(claim, tensor) for claim in owned for tensor in _tensors(bound, claim)]
    matrices = [tensor for claim, tensor in found if tensor.dim() == 3 or (claim.kind in _LINEAR and tensor.dim() == 2)]
    return _Weights(
        sum(matrix.numel() for matrix in matrices),
        count.bytes(matrices),
        count.bytes(tensor for _, tensor in found) - count.bytes(matrices),
    )


def _tensors(bound: BoundModel, claim: Claim) -> list[Tensor]:
    """The parameters and persistent buffers at a claim's path."""
    if claim.kind is ClaimKind.TENSOR:
        return [bound.tensor(claim.path)]
    return list(bound.module(claim.path).state_dict().values())


def _by_structure(loaded: LoadedModel, count: _Count = _AS_HELD) -> Traffic:
    """By the modules that are an attention or an MLP; what lies beside the two are norms, half of them each's."""
    model: Any = loaded.model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    sublayers: list[_SubLayer] = []
    inside: list[nn.Module] = [embedding, head]
    modules = zip(loaded.sublayers.layers, loaded.sublayers.attention, loaded.sublayers.mlp, strict=True)
    for (layer, attention, mlp), position in zip(modules, _cached(loaded, count), strict=True):
        norms = count.bytes(_without(layer, (attention, mlp)))
        sublayers.append(_SubLayer(_of_module(attention, norms // 2, count), position=position))
        sublayers.append(_SubLayer(_of_module(mlp, norms - norms // 2, count)))
        inside.append(layer)
    return Traffic(
        sublayers=tuple(sublayers),
        head=_of_module(head, 0, count),
        head_rows=int(head.weight.shape[0]),
        final=count.bytes(parameter for parameter in _without(model, inside) if parameter.dim() < 2),
        row=count.bytes([embedding.weight[0]]),
        has_experts=(mixed := any("expert" in name for name, _ in loaded.sublayers.mlp[-1].named_modules())),
        counts_all=mixed,
    )


@torch.inference_mode()
def _cached(loaded: LoadedModel, count: _Count) -> list[int]:
    """Bytes that each layer caches of one position: how models without a plan shape them only a pass tells."""
    cache = DynamicCache()
    token = torch.zeros(1, 1, dtype=torch.long, device=loaded.device)
    loaded.model(input_ids=token, use_cache=True, **{loaded.cache_argument: cache})
    layers: list[Any] = cache.layers
    return [count.bytes((layer.keys, layer.values)) for layer in layers]


def _of_module(module: nn.Module, norm_bytes: int, count: _Count) -> _Weights:
    parameters = count.parameters(module)
    matrices = [parameter for parameter in parameters if parameter.dim() >= 2]
    num_bytes = count.bytes(matrices)
    return _Weights(
        sum(matrix.numel() for matrix in matrices), num_bytes, norm_bytes + count.bytes(parameters) - num_bytes
    )


def _without(module: nn.Module, inner: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of ``module`` that belong to none of ``inner``."""
    known = {id(parameter) for part in inner for parameter in part.parameters()}
    return [parameter for parameter in module.parameters() if id(parameter) not in known]
