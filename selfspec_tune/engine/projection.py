"""Linear layers of the fast runner, at the model's precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from selfspec_tune.engine.fused import fuse
from selfspec_tune.engine.widening import linear


class Projection(Protocol):
    """A linear layer: hidden [tokens, inputs] to [tokens, outputs]."""

    def __call__(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``weight`` [outputs, inputs] and ``bias`` [outputs], the model's own tensors."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, *layers: Any) -> Dense:
        """One linear layer, or several over one input fused into one."""
        return cls(*fuse(layers))

    def __call__(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight, self.bias)

    def narrow(self, rows: int | None) -> Dense:
        """The first ``rows`` outputs, as views; None: all."""
        return Dense(self.weight[:rows], None if self.bias is None else self.bias[:rows])
