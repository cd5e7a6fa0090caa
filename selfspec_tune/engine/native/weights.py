"""The structures that describe a model's weights to the kernels, and what keeps their memory alive."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selfspec_tune.engine.llama_layers import Attention, Mlp
from selfspec_tune.engine.native.copies import NativeCopy
from selfspec_tune.engine.native.library import Format, Kind, Linear, SubLayer
from selfspec_tune.engine.projection import Dense

FORMATS = {torch.float32: Format.FLOAT32, torch.bfloat16: Format.BFLOAT16}


class Described:
    """Structures over tensors that live as long as they do."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def sublayer(self, index: int, module: Attention | Mlp, copies: Sequence[NativeCopy] = ()) -> SubLayer:
        """Sub-layer ``index`` in the order of `SkipSet.to_flags`, with its own weights or their ``copies``."""
        into, out = copies or module.projections
        norm = self.floats(module.norm.weight)
        if isinstance(module, Attention):
            qkv, output = self.linear(into), self.linear(out)
            return SubLayer(Kind.ATTENTION, index // 2, module.norm.epsilon, module.scale, norm, qkv, output, Linear())
        width = module.width
        gate, up = self.linear(into, 0, width), self.linear(into, width, width)
        return SubLayer(Kind.MLP, index // 2, module.norm.epsilon, 0.0, norm, gate, up, self.linear(out))

    def linear(self, layer: Dense | NativeCopy, start: int = 0, rows: int | None = None) -> Linear:
        """A linear layer, or ``rows`` outputs of it from ``start``."""
        if isinstance(layer, NativeCopy):
            self._kept.append(layer)
            return layer.structure(start, rows)
        end = None if rows is None else start + rows
        weight = layer.weight[start:end]
        if not weight.is_contiguous():
            raise ValueError("the kernels read contiguous weights only")
        self._kept.append(weight)
        bias = None if layer.bias is None else self.floats(layer.bias[start:end])
        return Linear(FORMATS[weight.dtype], 0, *weight.shape, weight.data_ptr(), None, bias)

    def floats(self, tensor: Tensor) -> int:
        """Address of a float32 copy of a small tensor."""
        copy = tensor.detach().to(torch.float32, copy=True).contiguous()
        self._kept.append(copy)
        return copy.data_ptr()


@dataclass(frozen=True, slots=True)
class Stack:
    """What a pass runs through, as the kernels read it. ``kept``: all that its addresses point into."""

    sublayers: ctypes.Array[ctypes.c_void_p]
    head: Linear
    kept: tuple[tuple[Described, SubLayer], ...]
    kept_head: Described

    @classmethod
    def of(cls, sublayers: Iterable[tuple[Described, SubLayer]], head: Dense | NativeCopy) -> Stack:
        kept, kept_head = tuple(sublayers), Described()
        return cls(_pointers([sublayer for _, sublayer in kept]), kept_head.linear(head), kept, kept_head)


def _pointers(sublayers: Sequence[SubLayer]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of the structures' addresses; the structures must outlive it."""
    return (ctypes.c_void_p * len(sublayers))(*(ctypes.addressof(sublayer) for sublayer in sublayers))
