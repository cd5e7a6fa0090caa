"""Which sub-layer of a decoder owns which tensors: every tensor of a model is claimed once, or the model is another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from selfspec_tune.draft.sublayer import SubLayerId, SubLayerKind, sublayers_of
from selfspec_tune.plans.attention import AttentionPlan, QkNormKind, WeightOrder
from selfspec_tune.plans.decoder import DecoderPlan
from selfspec_tune.plans.mlp import ExpertsPlan, MlpPlan
from selfspec_tune.plans.norm import NormPlan

_ANY = None


class ClaimKind(StrEnum):
    """What lies at a claim's path."""

    LINEAR = "linear layer"  # a module with a weight and perhaps a bias
    TRANSPOSED = "transposed linear layer"  # the same, its weight stored [inputs, outputs]
    NORM = "norm"  # a module with a weight, unless its plan has none, and perhaps a bias
    NORMS = "list of norms"  # a module, or a list of modules
    EMBEDDING = "embedding"  # a module with a weight
    TENSOR = "tensor"  # a parameter or a persistent buffer itself
    NUMBERS = "learned numbers"  # a module all of whose tensors are meant
    BESIDE = "unused"  # the same, of a module that text never runs through


@dataclass(frozen=True, slots=True)
class Claim:
    """``path`` within the model; ``owner``: the sub-layer it belongs to, None where it is the decoder's.

    ``other``: a second sub-layer that it belongs to as much, the MLP beside an attention that reads the same norm.

    ``shape`` is the weight's as our loops read it ([outputs, inputs] of linear layers), with None for any size;
    empty where it is not told.
    """

    path: str
    kind: ClaimKind
    owner: SubLayerId | None = None
    shape: tuple[int | None, ...] = ()
    other: SubLayerId | None = None

    def covers(self, name: str) -> bool:
        """Whether the tensor called ``name`` within the model is one of those claimed."""
        if self.kind is ClaimKind.TENSOR:
            return name == self.path
        if self.kind in (ClaimKind.NORMS, ClaimKind.NUMBERS, ClaimKind.BESIDE):
            return name.startswith(f"{self.path}.")
        return name in (f"{self.path}.weight", f"{self.path}.bias")


def claims(plan: DecoderPlan) -> Iterator[Claim]:
    """All claims of a plan: the decoder's own, then each sub-layer's in running order."""
    width = plan.hidden_size
    yield Claim(plan.embedding.path, ClaimKind.EMBEDDING, shape=(_ANY, _ANY))
    if plan.embedding.positions is not None:
        yield Claim(plan.embedding.positions, ClaimKind.EMBEDDING, shape=(_ANY, width))
    for norm in (plan.embedding.norm, plan.norm):
        yield from _norm(norm, "", None, width)
    yield Claim(plan.head.path, ClaimKind.LINEAR, shape=(_ANY, width))
    yield from (Claim(path, ClaimKind.BESIDE) for path in plan.beside)
    for sublayer in sublayers_of(plan.num_layers):
        yield from (claim for claim in sublayer_claims(plan, sublayer) if claim.other != sublayer)


def sublayer_claims(plan: DecoderPlan, sublayer: SubLayerId) -> Iterator[Claim]:
    """The claims of one sub-layer; the norm that both of a layer read is claimed for each, with the same owners."""
    planned, prefix = plan.sublayer(sublayer), f"{plan.layer_path(sublayer.layer)}."
    attention, mlp = (SubLayerId(kind, sublayer.layer) for kind in SubLayerKind)
    if planned.norm is not None and plan.sublayer(attention).norm == plan.sublayer(mlp).norm:
        yield from (replace(claim, other=mlp) for claim in _norm(planned.norm, prefix, attention, plan.hidden_size))
    else:
        yield from _norm(planned.norm, prefix, sublayer, plan.hidden_size)
    yield from _norm(planned.post, prefix, sublayer, plan.hidden_size)
    if isinstance(planned, AttentionPlan):
        yield from _attention(planned, prefix, sublayer, plan.hidden_size)
    elif isinstance(planned, MlpPlan):
        yield from _mlp(planned, prefix, sublayer, plan.hidden_size)
    else:
        yield from _experts(planned, prefix, sublayer, plan.hidden_size)


def _norm(norm: NormPlan | None, prefix: str, owner: SubLayerId | None, width: int | None) -> Iterator[Claim]:
    if norm is not None and norm.has_weight:
        yield Claim(prefix + norm.path, ClaimKind.NORM, owner, (width,))


def _attention(plan: AttentionPlan, prefix: str, owner: SubLayerId, width: int) -> Iterator[Claim]:
    kind = ClaimKind.TRANSPOSED if plan.is_transposed else ClaimKind.LINEAR
    queries, keys = plan.num_heads * plan.head_size, plan.num_kv_heads * plan.head_size
    rows = (queries, keys, keys) if plan.order is WeightOrder.SEPARATE else (queries + 2 * keys,)
    for path, outputs in zip(plan.inputs, rows, strict=True):
        yield Claim(prefix + path, kind, owner, (outputs, width))
    yield Claim(prefix + plan.output, kind, owner, (width, queries))
    if plan.qk_norm is not None:
        is_list = plan.qk_norm.kind is QkNormKind.EACH_HEAD
        for norm in (plan.qk_norm.query, plan.qk_norm.key):
            if norm.has_weight:
                yield Claim(prefix + norm.path, ClaimKind.NORMS if is_list else ClaimKind.NORM, owner)
    if plan.sinks is not None:
        yield Claim(prefix + plan.sinks, ClaimKind.TENSOR, owner, (plan.num_heads,))
    if plan.gate is not None:
        yield Claim(prefix + plan.gate, ClaimKind.LINEAR, owner, (queries, width))
    yield from _norm(plan.inner, prefix, owner, queries)


def _mlp(plan: MlpPlan, prefix: str, owner: SubLayerId, width: int) -> Iterator[Claim]:
    kind = ClaimKind.TRANSPOSED if plan.is_transposed else ClaimKind.LINEAR
    rows = 2 * plan.width if plan.is_gated and len(plan.inputs) == 1 else plan.width
    for path in plan.inputs:
        yield Claim(prefix + path, kind, owner, (rows, width))
    yield Claim(prefix + plan.output, kind, owner, (width, plan.width))
    if plan.activation_path is not None:
        yield Claim(prefix + plan.activation_path, ClaimKind.NUMBERS, owner)
    yield from _norm(plan.inner, prefix, owner, plan.width)


def _experts(plan: ExpertsPlan, prefix: str, owner: SubLayerId, width: int) -> Iterator[Claim]:
    gate_up, down = (plan.count, 2 * plan.width, width), (plan.count, width, plan.width)
    if plan.is_transposed:
        gate_up, down = (plan.count, width, 2 * plan.width), (plan.count, plan.width, width)
    yield Claim(prefix + plan.gate_up, ClaimKind.TENSOR, owner, gate_up)
    yield Claim(prefix + plan.down, ClaimKind.TENSOR, owner, down)
    yield Claim(prefix + plan.router.weight, ClaimKind.TENSOR, owner, (plan.count, width))
    vectors = (plan.router.bias, plan.router.choice_bias)
    yield from (Claim(prefix + path, ClaimKind.TENSOR, owner, ()) for path in vectors if path is not None)
    for path, rows in zip(plan.biases or (), (2 * plan.width, width), strict=False):
        yield Claim(prefix + path, ClaimKind.TENSOR, owner, (plan.count, rows))
    if plan.shared is not None:
        yield from _mlp(plan.shared, prefix, owner, width)
    if plan.shared_gate is not None:
        yield Claim(prefix + plan.shared_gate, ClaimKind.LINEAR, owner, (1, width))
