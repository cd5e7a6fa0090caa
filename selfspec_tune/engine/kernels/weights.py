"""Weights as the kernels read them, and copies of few bits, packed.

Both kinds have a float32 scale a row. int8: codes by rows. int4: sixteen rows interleaved (layout: kernels/int4.h), and
for every 32 inputs of a row an int8 scale beside the row's; the levels are those of a codebook. What an int4 copy
multiplies is rounded too: every 32 inputs to int8, of a step of their own.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from selfspec_tune.draft import Precision
from selfspec_tune.engine.kernels.binding import (
    INT4_GROUP,
    UNIT,
    Linear,
    WeightFormat,
    load_library,
)
from selfspec_tune.engine.layers.linear import PIECE_ROWS, Dense, is_widened, linear_by_pieces, roomy
from selfspec_tune.engine.layers.lowbit import LowBitSettings, row_chunks
from selfspec_tune.engine.layers.quantize import Moments, quantize_symmetric
from selfspec_tune.errors import UnsupportedPrecisionError

_GROUP_BYTES = UNIT * (1 + INT4_GROUP // 2)  # of the scales and the codes of one group of a tile
_LEAST_INPUT = 1e-30  # less is nothing
_PIECE_BYTES = 4 << 20  # of a weight dequantised at once: fits the last-level cache of any machine
FORMATS = {torch.float32: WeightFormat.FLOAT32, torch.bfloat16: WeightFormat.BFLOAT16}


def refusal(precision: Precision, num_inputs: int, settings: LowBitSettings) -> str | None:
    """Why a weight with ``num_inputs`` columns cannot be copied at ``precision``, None where it can."""
    if precision is not Precision.INT4:
        return None
    if settings.group_size != INT4_GROUP:
        return f"groups of {settings.group_size} were asked for, and the kernels have {INT4_GROUP}"
    if num_inputs % INT4_GROUP:
        return f"its {num_inputs} inputs are no multiple of {INT4_GROUP}"
    return None


def copy_bytes(dense: Dense, precision: Precision, settings: LowBitSettings) -> int:
    """Bytes of the copy that `NativeCopy` would hold."""
    rows, columns = dense.weight.shape
    if precision is Precision.SAME:
        return 0
    if precision is Precision.INT8:
        return rows * (columns + 4)
    return -(-rows // UNIT) * (columns // INT4_GROUP) * _GROUP_BYTES + 4 * rows


class NativeCopy:
    """A copy of one linear layer. Called, it computes with the values and the inputs that the kernels multiply.

    With the ``moments`` of its inputs, an int4 copy errs little on inputs like those.
    """

    def __init__(
        self, dense: Dense, precision: Precision, settings: LowBitSettings, moments: Moments | None = None
    ) -> None:
        rows, columns = (int(size) for size in dense.weight.shape)
        reason = refusal(precision, columns, settings)
        if reason is not None:
            raise UnsupportedPrecisionError(
                f"No {precision} copy of a {rows} × {columns} weight can draft here: {reason}. "
                "Draft it at the model's own precision."
            )
        self._dense = dense
        self._bias = None if dense.bias is None else dense.bias.float()
        self._is_int4 = precision is Precision.INT4
        self._codes, self._scales = pack_int4(dense.weight, moments) if self._is_int4 else pack_int8(dense.weight)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self._codes, self._scales))

    def structure(self, start: int = 0, rows: int | None = None) -> Linear:
        """What the kernels read: ``rows`` outputs from ``start`` (for int4 a multiple of 16)."""
        whole, columns = (int(size) for size in self._dense.weight.shape)
        return Linear(
            WeightFormat.INT4 if self._is_int4 else WeightFormat.INT8,
            whole - start if rows is None else rows,
            columns,
            self._codes_from(start).data_ptr(),
            self._scales[start:].data_ptr(),
            None if self._bias is None else self._bias[start:].data_ptr(),
        )

    def part(self, number: int) -> NativeCopy:
        """The copy of one of several layers, sharing the codes; of int4 ones each has whole units of rows."""
        part = object.__new__(NativeCopy)
        part._dense, part._is_int4 = self._dense.part(number), self._is_int4
        start = number * int(part._dense.weight.shape[0])
        part._codes, part._scales = self._codes_from(start), self._scales[start:]
        part._bias = None if self._bias is None else self._bias[start:]
        return part

    def narrow(self, rows: int | None) -> NativeCopy:
        """The first ``rows`` outputs, sharing the codes; None: all."""
        if rows is None:
            return self
        part = object.__new__(NativeCopy)
        part._dense, part._is_int4 = self._dense.narrow(rows), self._is_int4
        part._codes, part._scales, part._bias = self._codes, self._scales, self._bias
        return part

    def __call__(self, hidden: Tensor) -> Tensor:
        # Many rows at once are a search scoring a text. Dequantised piece by piece, the weight stays in the caches.
        rows, columns = (int(size) for size in self._dense.weight.shape)
        at_once = max(_PIECE_BYTES // (columns * hidden.element_size()) // UNIT * UNIT, UNIT)
        if self._is_int4:
            hidden = rounded_inputs(hidden).to(hidden.dtype)
        return linear_by_pieces(
            hidden, rows, self._dense.bias, self._dequantise, PIECE_ROWS if is_widened(hidden) else at_once
        )

    def _codes_from(self, row: int) -> Tensor:
        return self._codes[row // UNIT if self._is_int4 else row :]

    def _dequantise(self, start: int, weight: Tensor) -> None:
        """Fill ``weight`` with the values of the rows from ``start``."""
        structure = self.structure(start, int(weight.shape[0]))
        is_bf16 = weight.dtype == torch.bfloat16
        load_library().dequantise(ctypes.byref(structure), weight.data_ptr(), is_bf16, torch.get_num_threads())


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [rows, columns] and scales float32 [rows]."""
    codes, scales = roomy(weight.shape, torch.int8), torch.empty(weight.shape[0])
    for start, rows in row_chunks(weight):
        chunk = quantize_symmetric(rows, 8, rows.shape[1], torch.float32)
        codes[start : start + rows.shape[0]] = chunk.signed_codes
        scales[start : start + rows.shape[0]] = chunk.scale[:, 0]
    return codes, scales


def pack_int4(weight: Tensor, moments: Moments | None = None) -> tuple[Tensor, Tensor]:
    """Bytes [tiles, groups, 272] of scales and codes, and scales float32 [rows]; columns must be a multiple of 32.

    With ``moments`` of the inputs by GPTQ (Frantar et al., ICLR 2023), within their blocks: the weights after
    each make up for its error. Without, every weight is rounded by itself.
    """
    rows, columns = weight.shape
    packed = roomy((-(-rows // UNIT), columns // INT4_GROUP, _GROUP_BYTES), torch.uint8)
    scales = torch.empty(rows)
    importance = torch.ones(columns) if moments is None else moments.mean_squares
    factors = None if moments is None else moments.factors
    load_library().pack_codebook(
        *(weight.data_ptr(), weight.dtype == torch.bfloat16, rows, columns),
        *(importance.data_ptr(), None if factors is None else factors.data_ptr()),
        *(INT4_GROUP if factors is None else factors.shape[-1], packed.data_ptr(), scales.data_ptr()),
        torch.get_num_threads(),
    )
    return packed, scales


def rounded_inputs(hidden: Tensor) -> Tensor:
    """What int4 weights multiply in place of ``hidden`` [..., inputs], float32; inputs: a multiple of 32."""
    groups = hidden.float().unflatten(-1, (-1, INT4_GROUP))
    most = groups.abs().amax(-1, keepdim=True)
    codes = (groups * torch.where(most > _LEAST_INPUT, 127 / most, 0)).round()
    values: Tensor = (codes * (most / 127)).flatten(-2)
    return values
