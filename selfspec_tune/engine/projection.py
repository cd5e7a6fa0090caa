"""Linear layers of the fast runner, at the model's precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from selfspec_tune.engine.fused import fuse


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
        if len(layers) > 1:
            return cls(*fuse(layers))
        bias = layers[0].bias
        return cls(layers[0].weight.data, None if bias is None else bias.data)

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight, self.bias)

    def narrow(self, rows: int | None) -> Dense:
        """The first ``rows`` outputs, as views; None: all."""
        return Dense(self.weight[:rows], None if self.bias is None else self.bias[:rows])
