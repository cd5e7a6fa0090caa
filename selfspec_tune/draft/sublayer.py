"""Which sub-layer of a model is meant: the attention or the MLP of a layer, numbered as they run."""

from __future__ import annotations

import functools
from enum import StrEnum
from typing import NamedTuple


class SubLayerKind(StrEnum):
    """The two sub-layers of a layer, in the order in which they run."""

    ATTENTION = "attention"
    MLP = "mlp"


_KINDS = tuple(SubLayerKind)
_LABELS = {SubLayerKind.ATTENTION: "attn", SubLayerKind.MLP: "mlp"}


class SubLayerId(NamedTuple):
    """One attention or MLP of one layer; as text ``attn 3`` or ``mlp 3``."""

    kind: SubLayerKind
    layer: int

    @classmethod
    def of(cls, index: int) -> SubLayerId:
        """Number ``index`` in running order: attention 0, MLP 0, attention 1, …"""
        layer, kind = divmod(index, len(_KINDS))
        return cls(_KINDS[kind], layer)

    @property
    def index(self) -> int:  # type: ignore[override]  # a tuple's search for a value, which nobody wants of this one
        """Its number in running order, 0 to 2 L - 1 in a model of L layers."""
        return len(_KINDS) * self.layer + _KINDS.index(self.kind)

    @property
    def is_attention(self) -> bool:
        """Whether it is an attention, which reads the cache."""
        return self.kind is SubLayerKind.ATTENTION

    def __str__(self) -> str:
        return f"{_LABELS[self.kind]} {self.layer}"


@functools.cache
def sublayers_of(num_layers: int) -> tuple[SubLayerId, ...]:
    """All of a model's, in running order."""
    return tuple(map(SubLayerId.of, range(len(_KINDS) * num_layers)))
