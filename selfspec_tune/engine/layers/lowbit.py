"""Low-precision copies of linear layers, computed by torch's own weight-only kernels.

int8: one scale per output row. int4: a scale and a centre per group along the input.
Layouts as in torch's ``test/test_linalg.py`` (``_weight_int8pack_mm``, ``_weight_int4pack_mm``)
and ``aten/src/ATen/native/{cpu,cuda}/int4mm*``. Nothing here ever computes with a weight
that was dequantised beforehand: where there is no kernel, the precision is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from selfspec_tune.draft import Precision
from selfspec_tune.engine.layers.linear import Dense, Projection
from selfspec_tune.engine.layers.quantize import Quantized, lies_on_a_grid, quantize_asymmetric, quantize_symmetric
from selfspec_tune.errors import UnsupportedPrecisionError

_CHUNK_ELEMENTS = 1 << 22  # quantised at once: bounds the float32 temporaries to some 100 MiB
_ROW_BLOCK = 64  # rows that a packed layout keeps together, at most
_INT8_COLUMNS = 16  # the bfloat16 kernel reads whole vectors and runs past a shorter end (torch 2.13)
_CUDA_GROUPS = (32, 64, 128, 256)
_AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class LowBitSettings:
    """How int4 copies are made: weights per group along the input, and whether levels lie about zero."""

    group_size: int = 32
    symmetric: bool = False


class LowBit(Projection, Protocol):
    """A weight-only copy of a linear layer. ``num_bytes``: what it holds beyond the model's own weights."""

    @property
    def num_bytes(self) -> int: ...

    def narrow(self, rows: int | None) -> Projection:
        """The first ``rows`` outputs, sharing the packed weight; None: all."""


def make_copy(dense: Dense, precision: Precision, settings: LowBitSettings = LowBitSettings()) -> LowBit:
    """A copy of ``dense`` at ``precision``.

    Raises:
        UnsupportedPrecisionError: torch has no kernel for it here.
    """
    weight = dense.weight
    reason = refusal(precision, weight.device, weight.dtype, int(weight.shape[1]), settings)
    if reason is not None:
        raise UnsupportedPrecisionError(
            f"No {precision} copy of a {weight.shape[0]} × {weight.shape[1]} weight can draft here: {reason}. "
            "Draft it at the model's own precision."
        )
    if dense.parts > 1:
        return Parts([make_copy(dense.part(number), precision, settings) for number in range(dense.parts)])
    if precision is Precision.INT8:
        return Int8(dense)
    return Int4(dense, settings)


def refusal(
    precision: Precision,
    device: torch.device,
    dtype: torch.dtype,
    num_inputs: int,
    settings: LowBitSettings = LowBitSettings(),
) -> str | None:
    """Why a weight with ``num_inputs`` columns cannot be copied at ``precision``, None where it can."""
    if device.type not in ("cpu", "cuda"):
        return f"torch has no weight-only kernels for {device.type}"
    if precision is Precision.INT8:
        if num_inputs % _INT8_COLUMNS:
            return f"its {num_inputs} inputs are no multiple of {_INT8_COLUMNS}"
        return _matvec_refusal() if device.type == "cuda" else None
    if num_inputs % settings.group_size:
        return f"its {num_inputs} inputs are no multiple of the group size {settings.group_size}"
    if settings.group_size % 32:
        return f"groups of {settings.group_size} were asked for, and the kernels want a multiple of 32"
    return _cuda_int4_refusal(device, dtype, settings) if device.type == "cuda" else None


def copy_bytes(dense: Dense, precision: Precision, settings: LowBitSettings) -> int:
    """Bytes of the copy that `make_copy` would make."""
    (rows, columns), dtype = dense.weight.shape, dense.weight.dtype
    if precision is Precision.SAME:
        return 0
    if precision is Precision.INT8:
        return rows * (columns + dtype.itemsize)
    padded = dense.parts * -(-rows // (dense.parts * _ROW_BLOCK)) * _ROW_BLOCK
    return padded * (columns // 2 + 2 * dtype.itemsize * columns // settings.group_size)


class Int8:
    """int8 codes [outputs, inputs], one scale per output."""

    def __init__(self, dense: Dense) -> None:
        weight = dense.weight
        self._codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        self._scale = torch.empty(weight.shape[0], dtype=weight.dtype, device=weight.device)
        self._bias = dense.bias
        for start, rows in row_chunks(weight):
            chunk = quantize_symmetric(rows, 8, rows.shape[1], weight.dtype)
            self._codes[start : start + rows.shape[0]] = chunk.signed_codes
            self._scale[start : start + rows.shape[0]] = chunk.scale[:, 0]

    @property
    def num_bytes(self) -> int:
        return _bytes(self._codes, self._scale)

    def narrow(self, rows: int | None) -> Int8:
        part = object.__new__(Int8)
        part._codes, part._scale = self._codes[:rows], self._scale[:rows]
        part._bias = None if self._bias is None else self._bias[:rows]
        return part

    def __call__(self, hidden: Tensor) -> Tensor:
        output = _int8_linear(hidden, self._codes, self._scale)
        return output if self._bias is None else output + self._bias


class Int4:
    """Packed int4 codes, and scale and centre [groups, outputs, 2]; outputs padded to whole blocks."""

    def __init__(self, dense: Dense, settings: LowBitSettings) -> None:
        weight = dense.weight
        find_grid = not settings.symmetric and lies_on_a_grid(weight, 4, settings.group_size)
        packed, scales = [], []
        for _, rows in row_chunks(weight):
            chunk = _quantize_int4(_padded(rows), settings, weight.dtype, find_grid)
            packed.append(_pack(chunk.codes))
            scales.append(torch.stack((chunk.scale.T, chunk.centre.T), -1))
        self._packed = torch.cat(packed)
        self._scales = torch.cat(scales, 1).contiguous()
        self._num_outputs = int(weight.shape[0])
        self._group_size = settings.group_size
        self._bias = dense.bias

    @property
    def num_bytes(self) -> int:
        return _bytes(self._packed, self._scales)

    def narrow(self, rows: int | None) -> Int4:
        if rows is None or rows >= self._num_outputs:
            return self
        part = object.__new__(Int4)
        whole = -(-rows // _ROW_BLOCK) * _ROW_BLOCK
        rows_per_tile = self._scales.shape[1] // self._packed.shape[0]  # 1 on CPU; CUDA packs tiles of 8
        part._packed = self._packed[: whole // rows_per_tile]
        part._scales = self._scales[:, :whole].contiguous()
        part._num_outputs, part._group_size = rows, self._group_size
        part._bias = None if self._bias is None else self._bias[:rows]
        return part

    def __call__(self, hidden: Tensor) -> Tensor:
        multiply = _INT4_LINEAR[hidden.device.type]
        output = multiply(hidden.contiguous(), self._packed, self._group_size, self._scales)
        output = output[:, : self._num_outputs]
        return output if self._bias is None else output + self._bias


class Parts:
    """Copies of layers that lie one below the other, each packed by itself: packed layouts begin at whole blocks."""

    def __init__(self, copies: Sequence[LowBit]) -> None:
        self._copies = copies

    @property
    def num_bytes(self) -> int:
        return sum(copy.num_bytes for copy in self._copies)

    def part(self, number: int) -> LowBit:
        """The copy of one layer."""
        return self._copies[number]

    def narrow(self, rows: int | None) -> Projection:
        if rows is None:
            return self
        raise ValueError("layers that lie one below the other have parts, not rows")

    def __call__(self, hidden: Tensor) -> Tensor:
        return torch.cat([copy(hidden) for copy in self._copies], -1)


def row_chunks(weight: Tensor) -> Iterator[tuple[int, Tensor]]:
    """``weight`` in pieces of whole row blocks, with the row at which each begins."""
    rows = max(1, _CHUNK_ELEMENTS // (weight.shape[1] * _ROW_BLOCK)) * _ROW_BLOCK
    for start in range(0, weight.shape[0], rows):
        yield start, weight[start : start + rows]


def _padded(rows: Tensor) -> Tensor:
    missing = -rows.shape[0] % _ROW_BLOCK
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _quantize_int4(rows: Tensor, settings: LowBitSettings, dtype: torch.dtype, find_grid: bool) -> Quantized:
    if settings.symmetric:
        return quantize_symmetric(rows, 4, settings.group_size, dtype)
    return quantize_asymmetric(rows, 4, settings.group_size, dtype, find_grid=find_grid)


def _pack(codes: Tensor) -> Tensor:
    """Codes 0–15 [rows, columns] in the layout of the device's kernel."""
    if codes.device.type == "cpu":
        packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    else:
        pairs = codes[:, ::2] << 4 | codes[:, 1::2]
        packed = torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), _inner_tiles(int(codes.shape[1])))
    return packed


def _inner_tiles(num_inputs: int) -> int:
    """Tiles of 16 inputs that CUDA's layout keeps together: the most that divides the inputs."""
    return next(tiles for tiles in (8, 4, 2) if num_inputs % (16 * tiles) == 0)


def _int8_linear(hidden: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    if hidden.device.type == "cpu":
        output: Tensor = torch.ops.aten._weight_int8pack_mm(hidden.contiguous(), codes, scale)
        return output
    if hidden.shape[0] == 1:
        return _compiled_matvec()(hidden, codes, scale)
    # Many rows at once are a search scoring a text, never a draft step: no time is taken of it.
    return (hidden @ codes.T.to(hidden.dtype)) * scale


def int8_matvec(hidden: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """hidden [1, inputs] times codes [outputs, inputs] by rows, scaled; accumulates in float32."""
    total = (codes.float() * hidden.float()).sum(-1)
    return (total * scale.float()).to(hidden.dtype)[None]


@cache
def _compiled_matvec() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """One fused kernel that reads the codes once, for every shape.

    torch's own ``_weight_int8pack_mm`` gives each CUDA thread a whole row to read, so its
    reads are scattered: slower than the model's own precision.
    """
    compiled: Any = torch.compile(int8_matvec, dynamic=True)
    return compiled  # type: ignore[no-any-return]


@cache
def _matvec_refusal() -> str | None:
    """Compiles the kernel once, on the current GPU; why that fails, if it does."""
    try:
        for inputs, outputs in ((64, 32), (128, 48)):
            codes = torch.ones(outputs, inputs, dtype=torch.int8, device="cuda")
            row = torch.ones(1, inputs, device="cuda", dtype=torch.float16)
            _compiled_matvec()(row, codes, torch.ones(outputs, device="cuda", dtype=torch.float16))
    except Exception as error:  # whatever a compiler raises
        return f"its kernel does not compile here ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None


def _cuda_int4_refusal(device: torch.device, dtype: torch.dtype, settings: LowBitSettings) -> str | None:
    if dtype != torch.bfloat16:
        return f"CUDA's int4 kernel computes in bfloat16, and the model is in {str(dtype).removeprefix('torch.')}"
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return f"CUDA's int4 kernel needs compute capability 8.0, and {torch.cuda.get_device_name(device)} has less"
    if settings.group_size not in _CUDA_GROUPS:
        return f"CUDA's int4 kernel has groups of 32, 64, 128 and 256, not {settings.group_size}"
    return None


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


_INT4_LINEAR: dict[str, Callable[[Tensor, Tensor, int, Tensor], Tensor]] = {
    "cpu": torch.ops.aten._weight_int4pack_mm_for_cpu,
    "cuda": torch.ops.aten._weight_int4pack_mm,
}
