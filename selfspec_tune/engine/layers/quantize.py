"""Weight-only quantisation: codes, a scale and a centre per group of a row, and inputs that they must suit.

A group is ``group_size`` neighbours along the input dimension. Code ``c`` of ``bits`` bits
stands for ``(c - 2**(bits - 1)) * scale + centre``: the centre is a plain number, not an
integer zero point, as torch's packed kernels want it. Symmetric quantisation has centre 0.
Scales and centres are rounded to the dtype that the kernel reads before codes are chosen,
so that their rounding costs nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.models import LoadedModel

_SAMPLED_ROWS = 64
_ON_GRID = 0.15  # in steps: rounding to bfloat16 moves values, scales and centres by less; chance by far more
_BLOCKS = (128, 96, 64, 32)  # inputs in a block: the first that divides them all
_SINKS = 8  # first tokens of a text, which attentions rest on: their inputs are huge, and no draft computes them
_DAMPING = 0.01  # of the mean square: what was never seen together in one text may be in another


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight [rows, columns] as ``codes`` (uint8), ``scale`` and ``centre`` [rows, columns / group_size]."""

    codes: Tensor
    scale: Tensor
    centre: Tensor
    bits: int

    @property
    def signed_codes(self) -> Tensor:
        """Codes about 0, int8 [rows, columns]."""
        signed: Tensor = self.codes.to(torch.int16) - 2 ** (self.bits - 1)
        return signed.to(torch.int8)

    def dequantize(self) -> Tensor:
        """The weight that the codes stand for, float32 [rows, columns]."""
        rows, columns = self.codes.shape
        codes = self.codes.view(rows, self.scale.shape[1], -1).float() - 2 ** (self.bits - 1)
        values: Tensor = codes * self.scale.float()[..., None] + self.centre.float()[..., None]
        return values.view(rows, columns)


def quantize_symmetric(weight: Tensor, bits: int, group_size: int, dtype: torch.dtype) -> Quantized:
    """Codes from -(2**(bits-1) - 1) to 2**(bits-1) - 1 about 0; scales kept in ``dtype``."""
    grouped = _grouped(weight, group_size)
    limit = 2 ** (bits - 1) - 1
    scale = (grouped.abs().amax(-1) / limit).to(dtype)
    codes = (grouped * _inverse(scale)).round_().clamp_(-limit, limit)
    return Quantized(_codes(codes, bits, weight.shape), scale, torch.zeros_like(scale), bits)


def quantize_asymmetric(
    weight: Tensor, bits: int, group_size: int, dtype: torch.dtype, *, find_grid: bool = False
) -> Quantized:
    """Codes over each group's own range; scales and centres kept in ``dtype``.

    ``find_grid`` is for weights that were quantised before: a group whose range spans fewer
    than all levels keeps its own step then, instead of being resampled to a finer one.
    """
    grouped = _grouped(weight, group_size)
    levels = 2**bits - 1
    scale, centre = _range(grouped, levels, bits, dtype)
    if find_grid:
        _keep_own_step(grouped, scale, centre, bits)
    codes = _nearest(grouped, scale, centre, bits)
    return Quantized(_codes(codes, bits, weight.shape), scale, centre, bits)


def lies_on_a_grid(weight: Tensor, bits: int, group_size: int) -> bool:
    """Whether ``weight`` looks like one that was quantised in such groups before (by a sample of its rows)."""
    rows = weight[:: max(1, weight.shape[0] // _SAMPLED_ROWS)][:_SAMPLED_ROWS]
    grouped = _grouped(rows, group_size)
    scale, centre = _range(grouped, 2**bits - 1, bits, torch.float32)
    _keep_own_step(grouped, scale, centre, bits)
    return bool((_error(grouped, scale, centre, bits) < _ON_GRID).float().mean() > 0.9)


def _grouped(weight: Tensor, group_size: int) -> Tensor:
    """Float32 [rows, groups, group_size]."""
    rows, columns = weight.shape
    if columns % group_size:
        raise ValueError(f"{columns} columns are no multiple of the group size {group_size}")
    return weight.float().reshape(rows, columns // group_size, group_size)


def _range(grouped: Tensor, levels: int, bits: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and centre [rows, groups] that spread ``levels`` steps over each group's range."""
    low, high = grouped.amin(-1), grouped.amax(-1)
    scale = ((high - low) / levels).to(dtype)
    centre = (low + scale.float() * 2 ** (bits - 1)).to(dtype)
    return scale, centre


def _nearest(grouped: Tensor, scale: Tensor, centre: Tensor, bits: int) -> Tensor:
    """The nearest codes about 0, float."""
    middle = 2 ** (bits - 1)
    return ((grouped - centre.float()[..., None]) * _inverse(scale)).round_().clamp_(-middle, middle - 1)


def _error(grouped: Tensor, scale: Tensor, centre: Tensor, bits: int) -> Tensor:
    """Largest distance from a level, in steps of the group's scale; [rows, groups]."""
    codes = _nearest(grouped, scale, centre, bits)
    restored = codes * scale.float()[..., None] + centre.float()[..., None]
    return ((grouped - restored).abs() * _inverse(scale)).amax(-1)


def _keep_own_step(grouped: Tensor, scale: Tensor, centre: Tensor, bits: int) -> None:
    """Give groups that lie on a coarser grid that grid's scale and centre, in place.

    Half of all levels is the least to try: a grid of fewer is also one of twice as many.
    """
    open_groups = _error(grouped, scale, centre, bits) >= _ON_GRID
    for levels in range(2**bits - 2, 2 ** (bits - 1) - 1, -1):
        where = open_groups.nonzero(as_tuple=True)
        if not where[0].numel():
            return
        coarser = grouped[where]
        other_scale, other_centre = _range(coarser, levels, bits, scale.dtype)
        fits = _error(coarser, other_scale, other_centre, bits) < _ON_GRID
        found = tuple(index[fits] for index in where)
        scale[found], centre[found] = other_scale[fits], other_centre[fits]
        open_groups[found] = False


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale [..., 1] in float32, 0 for groups of one value."""
    scale = scale.float()
    return torch.where(scale > 0, 1 / scale.clamp(min=torch.finfo(torch.float32).tiny), 0.0)[..., None]


def _codes(signed: Tensor, bits: int, shape: torch.Size) -> Tensor:
    codes: Tensor = signed + 2 ** (bits - 1)
    return codes.to(torch.uint8).view(shape)


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

    def part(self, number: int) -> Dense:
        """One of several layers, of whose inputs nothing is noted: few tokens of a text go to each of many experts."""
        return self._dense.part(number)

    @property
    def has_seen(self) -> bool:
        """Whether anything was noted."""
        return self._count > 0

    @property
    def moments(self) -> Moments:
        """Of all that was noted."""
        return Moments.of(self._products / max(self._count, 1))
