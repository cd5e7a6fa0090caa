"""What the inputs of linear layers are like along a known text: a quantisation that knows them errs less on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selfspec_tune.engine.projection import Dense
from selfspec_tune.models import LoadedModel

_BLOCKS = (128, 96, 64, 32)  # inputs in a block: the first that divides them all
_SINKS = 8  # first tokens of a text, which attentions rest on: their inputs are huge, and no draft computes them
_DAMPING = 0.01  # of the mean square: what was never seen together in one text may be in another


def typical_text(loaded: LoadedModel, vocabulary_size: int) -> list[int]:
    """The tokens of text of many kinds, those that the model knows; none of it is in a set of prompts."""
    text = (Path(__file__).parent / "typical.txt").read_text(encoding="utf-8")
    return [token for token in loaded.tokenizer(text)["input_ids"] if token < vocabulary_size]


@dataclass(frozen=True, slots=True)
class Moments:
    """The inputs of a linear layer along a text, in blocks of neighbours.

    ``mean_squares`` float32 [inputs], damped. ``factors`` bfloat16 [blocks, size, size]: the upper
    Cholesky factor of the inverse of each block's second moments.
    """

    mean_squares: Tensor
    factors: Tensor

    @classmethod
    def of(cls, products: Tensor) -> Moments:
        """From mean products of the inputs, float32 [blocks, size, size]."""
        squares = products.diagonal(dim1=-2, dim2=-1)
        damping = _DAMPING * squares.mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        damped = products + torch.diag_embed(damping.expand_as(squares))
        # Only ratios matter: about one, the values of any model lie in range.
        damped = damped / damped.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factors = torch.linalg.cholesky(inverse, upper=True)
        return cls((squares + damping).flatten().contiguous(), factors.bfloat16().contiguous())


class Meter:
    """A linear layer that notes what its inputs are like; their number must be a multiple of 32."""

    def __init__(self, dense: Dense) -> None:
        self._dense = dense
        num_inputs = int(dense.weight.shape[1])
        size = next(size for size in _BLOCKS if num_inputs % size == 0)
        self._products = torch.zeros(num_inputs // size, size, size)
        self._count = 0

    def __call__(self, hidden: Tensor) -> Tensor:
        self.note(hidden)
        return self._dense(hidden)

    def note(self, hidden: Tensor) -> None:
        """Take hidden [tokens, inputs], the beginning of a text, into account."""
        hidden = hidden[_SINKS:]
        num_blocks, size, _ = self._products.shape
        blocks = hidden.float().view(-1, num_blocks, size).transpose(0, 1)
        self._products.baddbmm_(blocks.transpose(1, 2), blocks)
        self._count += hidden.shape[0]

    @property
    def moments(self) -> Moments:
        """Of all that was noted."""
        return Moments.of(self._products / max(self._count, 1))
