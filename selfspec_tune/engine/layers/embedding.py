"""The way in: embeddings, scaled, with learned positions, normalised, as a plan says."""

from __future__ import annotations

import torch
from torch import Tensor

from selfspec_tune.engine.layers.norm import Norm
from selfspec_tune.models.bound import BoundModel


class Embedding:
    """Rows of ``weight`` [tokens known, width]; see `EmbeddingPlan` for what is done to them.

    ``positions`` [positions, width]: added at its rows, from row ``offset`` on; None: none are learned.
    """

    def __init__(self, bound: BoundModel) -> None:
        self.plan = bound.plan.embedding
        self.weight = bound.tensor(f"{self.plan.path}.weight")
        rounded = torch.tensor(self.plan.scale, dtype=self.weight.dtype)
        self.scale = float(rounded) if self.plan.is_scale_rounded else self.plan.scale
        self.positions: Tensor | None = None
        if self.plan.positions is not None:
            self.positions = bound.tensor(f"{self.plan.positions}.weight")[self.plan.offset :]
        self.norm = None if self.plan.norm is None else Norm(self.plan.norm, bound)

    def __call__(self, tokens: Tensor | slice, positions: Tensor | slice) -> Tensor:
        """Hidden states [tokens, width] of token ids [tokens], or a slice of them, at positions [tokens]."""
        hidden = self.weight[tokens]
        if self.scale != 1:
            hidden = hidden * self.scale
        if self.positions is not None:
            hidden = hidden + self.positions[positions]
        return hidden if self.norm is None else self.norm(hidden)
