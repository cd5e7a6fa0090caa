"""Linear layers at the model's precision: where their weights lie, fused, and widened where that is faster.

Weights are widened a few rows at a time into a buffer that stays in the caches, so that they are
read at two bytes each. A result is rounded to bfloat16 once, at its end. Elsewhere torch's own.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec_tune.models.devices import cpu_computes_bfloat16

_HUGE_PAGE, _PAGE_OUT = 14, 21  # MADV_HUGEPAGE and MADV_PAGEOUT of Linux
# Up to here torch's imitation, which reads each weight once, is as fast: measured on AVX2.
_FEW_TOKENS = 4
PIECE_ROWS = 256  # of a weight, widened at once: with fewer the products are slower, with more it leaves the caches


def roomy(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """An empty tensor for weights that every step reads, in huge pages where the system gives them.

    Reading then needs few address translations, and the processor's prefetching meets few page ends.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype, device=device)
    _advise(tensor, _HUGE_PAGE)  # before anything is written: pages are given at the first write
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor is a file mapped into memory. False elsewhere than on Linux."""
    return _is_advisable(tensor) and _maps_a_file(tensor.data_ptr())


def let_go(tensor: Tensor) -> None:
    """Let the system take back the memory of a tensor that a file is mapped to, whole pages of it.

    A checkpoint is mapped in one piece, so the pages of a tensor stay resident after its last use.
    No content is lost: a page that is read again comes from the file again. Elsewhere than on Linux,
    and of any other memory, nothing is done: pages of no file would be written to swap first.
    """
    if is_mapped(tensor):
        _advise(tensor, _PAGE_OUT)


def _is_advisable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and sys.platform.startswith("linux") and tensor.is_contiguous()


def _advise(tensor: Tensor, advice: int) -> None:
    """Tell the system what to do with the whole pages of a tensor; it may ignore that."""
    if not _is_advisable(tensor):
        return
    page = mmap.PAGESIZE
    begin = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
    if end > begin:
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)


def _maps_a_file(address: int) -> bool:
    with Path("/proc/self/maps").open() as mappings:  # by address; the system writes no more of them than is read
        for line in mappings:
            span, _, _, _, inode, *_ = line.split(maxsplit=5)
            begin, end = (int(bound, 16) for bound in span.split("-"))
            if address < end:
                return begin <= address and inode != "0"
    return False


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def fuse(projections: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Stack linear layers over one input into one weight [sum of outputs, inputs] and one bias.

    Afterwards each layer's parameters are views of the stack: `model.generate` still runs
    and no weight is held twice. Layers that are already views of one stack are left alone,
    unless that stack is a file mapped into memory: every step reads them, so they get memory of their own.
    """
    weight = _stack([layer.weight for layer in projections])
    biases = [layer.bias for layer in projections if layer.bias is not None]
    if not biases:
        return weight, None
    if len(biases) != len(projections):
        raise ValueError("some of the projections have a bias and some have none")
    return weight, _stack(biases)


def turned(layer: Any) -> Tensor:
    """A weight stored [inputs, outputs] as [outputs, inputs], contiguous.

    Afterwards the layer's parameter is a view of that: `model.generate` still runs and no weight is held twice.
    """
    stored: Tensor = layer.weight.data
    if stored.t().is_contiguous() and not is_mapped(stored.t()):
        return stored.t()
    weight = roomy(tuple(reversed(stored.shape)), stored.dtype, stored.device)
    weight.copy_(stored.t())
    let_go(stored)
    layer.weight.data = weight.t()
    return weight


def _stack(parameters: Sequence[nn.Parameter]) -> Tensor:
    first = parameters[0].data
    rows = sum(p.shape[0] for p in parameters)
    shape = (rows, *first.shape[1:])
    if _adjacent(parameters) and not is_mapped(first):
        return first.as_strided(shape, first.stride())
    stack = roomy(shape, first.dtype, first.device)
    start = 0
    for parameter in parameters:
        end = start + parameter.shape[0]
        stack[start:end] = parameter.data
        let_go(parameter.data)
        parameter.data = stack[start:end]
        start = end
    return stack


def _adjacent(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether the parameters already lie one behind the other in one storage."""
    storage = parameters[0].data.untyped_storage().data_ptr()
    expected = parameters[0].data.data_ptr()
    for parameter in parameters:
        data = parameter.data
        if data.untyped_storage().data_ptr() != storage or data.data_ptr() != expected or not data.is_contiguous():
            return False
        expected += data.numel() * data.element_size()
    return True


def is_widened(hidden: Tensor) -> bool:
    """Whether products with ``hidden`` are computed in float32, though it is bfloat16."""
    return hidden.dtype == torch.bfloat16 and hidden.device.type == "cpu" and not cpu_computes_bfloat16()


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden [tokens, inputs] by ``weight`` [outputs, inputs], plus ``bias`` [outputs]: [tokens, outputs]."""
    if hidden.shape[:-1].numel() <= _FEW_TOKENS or not is_widened(hidden):
        return F.linear(hidden, weight, bias)

    def widen(start: int, piece: Tensor) -> None:
        piece.copy_(weight[start : start + piece.shape[0]])

    return linear_by_pieces(hidden, int(weight.shape[0]), bias, widen, PIECE_ROWS)


def linear_by_pieces(
    hidden: Tensor, rows: int, bias: Tensor | None, fill: Callable[[int, Tensor], None], at_once: int
) -> Tensor:
    """The same by a weight of so many ``rows`` that is never there as a whole.

    ``fill`` writes the rows from its first argument on into its second, [up to ``at_once``, inputs]:
    float32 where `is_widened`, else of the type of ``hidden``.
    """
    factor = hidden.float() if is_widened(hidden) else hidden
    buffer = torch.empty(min(at_once, rows), hidden.shape[-1], dtype=factor.dtype)
    result = torch.empty(*hidden.shape[:-1], rows, dtype=hidden.dtype)
    for start in range(0, rows, at_once):
        end = min(start + at_once, rows)
        piece = buffer[: end - start]
        fill(start, piece)
        result[..., start:end] = F.linear(factor, piece, None if bias is None else bias[start:end].to(factor.dtype))
    return result


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, *, is_causal: bool = False
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, a query head at a time over the key head of its group."""
    dtype = queries.dtype
    if is_widened(queries):
        queries, keys, values = queries.float(), keys.float(), values.float()
        mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    is_grouped = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=is_grouped
    ).to(dtype)


class Projection(Protocol):
    """A linear layer: hidden [tokens, inputs] to [tokens, outputs]."""

    def __call__(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """``weight`` [outputs, inputs] and ``bias`` [outputs], the model's own tensors.

    ``parts``: how many layers of one shape lie in it, one below the other; each may be computed by itself.
    """

    weight: Tensor
    bias: Tensor | None
    parts: int = 1

    @classmethod
    def of(cls, *layers: Any, is_transposed: bool = False) -> Dense:
        """One linear layer, or several over one input fused into one; or one that stores [inputs, outputs]."""
        if is_transposed:
            (layer,) = layers
            return cls(turned(layer), None if layer.bias is None else layer.bias.data)
        return cls(*fuse(layers))

    def __call__(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.weight, self.bias)

    def part(self, number: int) -> Dense:
        """One of the parts, as views."""
        rows = self.weight.shape[0] // self.parts
        own = slice(number * rows, (number + 1) * rows)
        return Dense(self.weight[own], None if self.bias is None else self.bias[own])

    def narrow(self, rows: int | None) -> Dense:
        """The first ``rows`` outputs, as views; None: all."""
        return Dense(self.weight[:rows], None if self.bias is None else self.bias[:rows])

    def rows(self, numbers: Tensor) -> Dense:
        """The outputs of these ``numbers`` [rows], copied."""
        return Dense(self.weight[numbers], None if self.bias is None else self.bias[numbers])


@dataclass(frozen=True, slots=True)
class Joined:
    """Two linear layers over one input, the outputs of ``second`` after those of ``first``."""

    first: Projection
    second: Projection

    def __call__(self, hidden: Tensor) -> Tensor:
        return torch.cat((self.first(hidden), self.second(hidden)), -1)
