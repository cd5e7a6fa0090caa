"""The way out: the last norm, and logits, scaled and capped, as a plan says."""

from __future__ import annotations

from torch import Tensor

from selfspec_tune.engine.layers.linear import Dense, Projection
from selfspec_tune.engine.layers.norm import Norm
from selfspec_tune.models.bound import BoundModel


class Head:
    """``dense`` [vocabulary, width] over what ``norm`` gives; see `HeadPlan` for what is done to its outputs."""

    def __init__(self, bound: BoundModel) -> None:
        self.plan = bound.plan.head
        self.dense = Dense.of(bound.module(self.plan.path))
        self.norm = None if bound.plan.norm is None else Norm(bound.plan.norm, bound)

    def normalised(self, hidden: Tensor) -> Tensor:
        """What the linear layer reads, [tokens, width]."""
        return hidden if self.norm is None else self.norm(hidden)

    def __call__(self, hidden: Tensor, projection: Projection | None = None) -> Tensor:
        """Logits [tokens, vocabulary] of hidden states [tokens, width], by another linear layer where one is given."""
        logits = (self.dense if projection is None else projection)(self.normalised(hidden))
        if self.plan.scale != 1:
            logits = logits * self.plan.scale
        if self.plan.cap is not None:
            logits = (logits / self.plan.cap).tanh_().mul_(self.plan.cap)
        return logits
