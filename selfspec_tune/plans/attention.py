"""Attention as plain values: weights, positions, and what a query may see."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from selfspec_tune.plans.norm import NormPlan
from selfspec_tune.plans.sublayer import SubLayerPlan


class WeightOrder(StrEnum):
    """How the outputs of queries, keys and values lie."""

    SEPARATE = "apart"  # three linear layers
    STACKED = "stacked"  # one: all queries, all keys, all values
    GROUPED = "by KV head"  # one: of each KV head its queries, its key, its value


class RopePairs(StrEnum):
    """Which two dimensions are rotated together."""

    HALVES = "halves"  # i and i + size / 2
    ADJACENT = "adjacent"  # 2 i and 2 i + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RopePlan:
    """Rotary positions of queries and keys.

    Attributes:
        table: key into `DecoderPlan.ropes`.
        size: how many dimensions of a head are rotated, its first ones.
        in_float32: whether cosines, sines and the rotation are float32, rounded once at the end. Otherwise the table
            is rounded to the model's type, and so are both products and their sum.
    """

    table: str
    size: int
    pairs: RopePairs = RopePairs.HALVES
    in_float32: bool = False


class QkNormKind(StrEnum):
    """What a norm of queries and keys is over."""

    HEAD = "per head"  # each head, all by one weight [head size]
    EACH_HEAD = "per head with weights of its own"  # each head, by a weight [heads, head size] or a module for each
    WIDTH = "over the width"  # all heads together, weight [heads * head size]


@dataclass(frozen=True, slots=True, kw_only=True)
class QkNormPlan:
    """Norms of queries and keys, before they are rotated or after. Paths are relative to the layer.

    Of `EACH_HEAD` a path may hold one weight [heads, size], or a list of modules ``path.0``, ``path.1``, … .
    """

    kind: QkNormKind
    query: NormPlan
    key: NormPlan
    is_after_rope: bool = False


class ReachKind(StrEnum):
    """Which earlier positions a query sees, itself always included."""

    FULL = "all"
    WINDOW = "window"  # the last `size`: key > query - size
    CHUNK = "chunk"  # those of its own chunk: key // size == query // size


@dataclass(frozen=True, slots=True)
class Reach:
    """`ReachKind` with its size in positions; 0 where it has none."""

    kind: ReachKind = ReachKind.FULL
    size: int = 0

    def first(self, position: int) -> int:
        """The first position that a query at ``position`` sees."""
        if self.kind is ReachKind.WINDOW:
            return max(0, position - self.size + 1)
        return position // self.size * self.size if self.kind is ReachKind.CHUNK else 0

    def seen(self, before: int) -> int:
        """How many of the ``before`` positions before its own a query sees."""
        if self.kind is ReachKind.FULL:
            return before
        return before % self.size if self.kind is ReachKind.CHUNK else min(before, self.size - 1)

    @property
    def most_seen(self) -> int | None:
        """How many earlier positions a query sees at most; None: there is no limit."""
        return None if self.kind is ReachKind.FULL else self.size - 1


@dataclass(frozen=True, slots=True)
class GrowthPlan:
    """Queries, after rope, times ``1 + beta * log(1 + floor((position + offset) / length))``."""

    beta: float
    length: int
    offset: int = 0


class BiasRounding(StrEnum):
    """Which type a distance bias is rounded to: it matters far out, where numbers of 8 bits are coarse."""

    FLOAT32 = "not at all"
    TYPE = "the model's type"  # and so is the score that it is added to
    BFLOAT16 = "bfloat16"  # slope, position and product, whatever the model's type


@dataclass(frozen=True, slots=True, kw_only=True)
class AlibiPlan:
    """What is added to the score of a key: ``scale * slope * position of the key``, the product with a slope rounded.

    So scores fall with distance: softmax does not see what all keys of a query share. ``slopes``: one per head.
    """

    slopes: tuple[float, ...]
    scale: float = 1.0
    rounding: BiasRounding = BiasRounding.FLOAT32


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPlan(SubLayerPlan):
    """Queries, keys and values from linear layers, a softmax over what is seen, and an output layer.

    In order: linear, clip, q/k norm (unless after), rope, q/k norm (if after), growth; scores times ``scale``, plus
    ``alibi``, capped; softmax with ``sinks``; ``gate``, ``inner`` norm, output. Paths are relative to the layer.

    Attributes:
        inputs: the linear layers of queries, keys and values; one where they are stacked or grouped.
        is_transposed: whether weights are stored [inputs, outputs] (transformers' Conv1D).
        clip: queries, keys and values are clamped to ± this.
        is_clip_late: whether they are clamped behind the q/k norm.
        cap: scores become ``cap * tanh(scores / cap)``.
        sinks: a parameter [heads]: one more score in the denominator of each head's softmax, with no value.
        alibi: what is added to scores by the position of their key, after ``scale``.
        gate: a linear layer over the normalised input: attended values are multiplied with its sigmoid.
        inner: a norm of attended values, before the output layer.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    inputs: tuple[str, ...]
    output: str
    order: WeightOrder = WeightOrder.SEPARATE
    is_transposed: bool = False
    clip: float | None = None
    is_clip_late: bool = False
    qk_norm: QkNormPlan | None = None
    rope: RopePlan | None = None
    growth: GrowthPlan | None = None
    reach: Reach = Reach()
    cap: float | None = None
    sinks: str | None = None
    alibi: AlibiPlan | None = None
    gate: str | None = None
    inner: NormPlan | None = None

    @property
    def rounds_scores(self) -> bool:
        """Whether scores are rounded to the model's type before the softmax."""
        return self.alibi is not None and self.alibi.rounding is BiasRounding.TYPE
