"""The structures that describe a model's weights to the kernels, and what keeps their memory alive."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from selfspec_tune.draft import Precision
from selfspec_tune.engine.fast import Attention, Mlp
from selfspec_tune.engine.native.library import Format, Kind, Linear, SubLayer
from selfspec_tune.engine.native.packing import pack_int4, pack_int8

FORMATS = {torch.float32: Format.FLOAT32, torch.bfloat16: Format.BFLOAT16}


class Weights:
    """One set of weights: the model's own, which it borrows, or a sub-layer's copies, which it owns."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self.copied_bytes = 0

    def sublayer(self, index: int, module: Attention | Mlp, precision: Precision = Precision.SAME) -> SubLayer:
        """Sub-layer ``index`` (in the order of `SkipSet.to_flags`) at a precision."""
        if isinstance(module, Attention):
            kind = Kind.ATTENTION
            linears = [
                self.linear(module.qkv, module.qkv_bias, precision),
                self.linear(module.output.weight.data, module.output.bias, precision),
                Linear(),
            ]
        else:
            kind = Kind.MLP
            width = module.width
            bias = module.gate_up_bias
            linears = [
                self.linear(module.gate_up[:width], None if bias is None else bias[:width], precision),
                self.linear(module.gate_up[width:], None if bias is None else bias[width:], precision),
                self.linear(module.down.weight.data, module.down.bias, precision),
            ]
        return SubLayer(kind, index // 2, self.floats(module.norm.weight), *linears)

    def linear(self, weight: Tensor, bias: Tensor | None, precision: Precision = Precision.SAME) -> Linear:
        """A weight [rows, cols], itself or a copy at a lower precision."""
        rows, cols = weight.shape
        bias_pointer = None if bias is None else self.floats(bias)
        if precision is Precision.INT8:
            packed, scales = pack_int8(weight)
            return Linear(Format.INT8, 0, rows, cols, self._own(packed), self._own(scales), bias_pointer)
        if precision is Precision.INT4:
            return Linear(Format.INT4, 1, rows, cols, self._own(pack_int4(weight)), None, bias_pointer)
        return Linear(FORMATS[weight.dtype], 0, rows, cols, self._keep(weight), None, bias_pointer)

    def floats(self, tensor: Tensor) -> int:
        """Address of a float32 copy of a small tensor."""
        return self._keep(tensor.detach().float().contiguous())

    def _own(self, tensor: Tensor) -> int:
        self.copied_bytes += tensor.numel() * tensor.element_size()
        return self._keep(tensor)

    def _keep(self, tensor: Tensor) -> int:
        if not tensor.is_contiguous():
            raise ValueError("the kernels read contiguous weights only")
        self._kept.append(tensor)
        return tensor.data_ptr()


def pointers(sublayers: list[SubLayer]) -> ctypes.Array[ctypes.c_void_p]:
    """An array of the structures' addresses; the structures must outlive it."""
    return (ctypes.c_void_p * len(sublayers))(*(ctypes.addressof(sublayer) for sublayer in sublayers))
