"""Weights as the kernels read them, and copies of few bits, packed.

int8: one float32 scale a row. int4: sixteen rows interleaved (layout: kernels/int4.h), and
for every 32 inputs of a row a bfloat16 scale; the levels are those of a codebook, or with a
centre beside the scale evenly spaced: those reproduce a checkpoint made from a 4-bit file.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
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
from selfspec_tune.engine.layers.quantize import Moments, lies_on_a_grid, quantize_asymmetric, quantize_symmetric
from selfspec_tune.errors import UnsupportedPrecisionError

_SCALE_BYTES = 2 * UNIT  # of the scales, or the centres, of one group of a tile
_CODE_BYTES = UNIT * INT4_GROUP // 2
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
    group = _CODE_BYTES + _SCALE_BYTES * (1 if settings.symmetric else 2)
    return -(-rows // UNIT) * (columns // INT4_GROUP) * group


class NativeCopy:
    """A copy of one linear layer. Called, it computes with the values that its codes stand for.

    With the ``moments`` of its inputs, an int4 copy by the codebook errs little on inputs like those.
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
        self._scales: Tensor | None = None
        if precision is Precision.INT8:
            self._codes, self._scales = pack_int8(dense.weight)
        else:
            symmetric = settings.symmetric
            self._codes = pack_codebook(dense.weight, moments) if symmetric else pack_grid(dense.weight)
        self._has_centre = precision is Precision.INT4 and not settings.symmetric

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self._codes, self._scales) if t is not None)

    def structure(self, start: int = 0, rows: int | None = None) -> Linear:
        """What the kernels read: ``rows`` outputs from ``start`` (for int4 a multiple of 16)."""
        whole, columns = (int(size) for size in self._dense.weight.shape)
        is_int8 = self._scales is not None
        offset = start if is_int8 else start // UNIT
        return Linear(
            WeightFormat.INT8 if is_int8 else WeightFormat.INT4,
            self._has_centre,
            whole - start if rows is None else rows,
            columns,
            self._codes[offset:].data_ptr(),
            None if self._scales is None else self._scales[start:].data_ptr(),
            None if self._bias is None else self._bias[start:].data_ptr(),
        )

    def part(self, number: int) -> NativeCopy:
        """The copy of one of several layers, sharing the codes; of int4 ones each has whole units of rows."""
        part = object.__new__(NativeCopy)
        part._dense = self._dense.part(number)
        start = number * int(part._dense.weight.shape[0])
        part._codes = self._codes[start if self._scales is not None else start // UNIT :]
        part._scales = None if self._scales is None else self._scales[start:]
        part._bias = None if self._bias is None else self._bias[start:]
        part._has_centre = self._has_centre
        return part

    def narrow(self, rows: int | None) -> NativeCopy:
        """The first ``rows`` outputs, sharing the codes; None: all."""
        if rows is None:
            return self
        part = object.__new__(NativeCopy)
        part._dense, part._bias = self._dense.narrow(rows), self._bias
        part._codes, part._scales, part._has_centre = self._codes, self._scales, self._has_centre
        return part

    def __call__(self, hidden: Tensor) -> Tensor:
        # Many rows at once are a search scoring a text. Dequantised piece by piece, the weight stays in the caches.
        rows, columns = (int(size) for size in self._dense.weight.shape)
        at_once = max(_PIECE_BYTES // (columns * hidden.element_size()) // UNIT * UNIT, UNIT)
        return linear_by_pieces(
            hidden, rows, self._dense.bias, self._dequantise, PIECE_ROWS if is_widened(hidden) else at_once
        )

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


def pack_codebook(weight: Tensor, moments: Moments | None = None) -> Tensor:
    """Bytes [tiles, groups, 288]: levels of the kernels' codebook; columns must be a multiple of 32.

    With ``moments`` of the inputs by GPTQ (Frantar et al., ICLR 2023), within their blocks: the weights after
    each make up for its error. Without, every weight is rounded by itself.
    """
    rows, columns = weight.shape
    packed = roomy((-(-rows // UNIT), columns // INT4_GROUP, _SCALE_BYTES + _CODE_BYTES), torch.uint8)
    importance = torch.ones(columns) if moments is None else moments.mean_squares
    factors = None if moments is None else moments.factors
    load_library().pack_codebook(
        *(weight.data_ptr(), weight.dtype == torch.bfloat16, rows, columns),
        *(importance.data_ptr(), None if factors is None else factors.data_ptr()),
        *(INT4_GROUP if factors is None else factors.shape[-1], packed.data_ptr(), torch.get_num_threads()),
    )
    return packed


def pack_grid(weight: Tensor) -> Tensor:
    """Bytes [tiles, groups, 320]: evenly spaced levels between each group's ends; columns must be a multiple of 32."""
    rows, columns = weight.shape
    packed = roomy((-(-rows // UNIT), columns // INT4_GROUP, 2 * _SCALE_BYTES + _CODE_BYTES), torch.uint8)
    find_grid = lies_on_a_grid(weight, 4, INT4_GROUP)
    for start, part in row_chunks(weight):
        padded = F.pad(part, (0, 0, 0, -part.shape[0] % UNIT))
        chunk = quantize_asymmetric(padded, 4, INT4_GROUP, torch.bfloat16, find_grid=find_grid)
        block = packed[start // UNIT : (start + padded.shape[0]) // UNIT]
        block[..., :_SCALE_BYTES] = _tiled(chunk.scale)
        block[..., _SCALE_BYTES : 2 * _SCALE_BYTES] = _tiled(chunk.centre)
        block[..., 2 * _SCALE_BYTES :] = _nibbles(chunk.codes)
    return packed


def _tiled(values: Tensor) -> Tensor:
    """bfloat16 [rows, groups] as bytes [tiles, groups, 32]."""
    tiled = values.bfloat16().view(-1, UNIT, values.shape[1]).transpose(1, 2).contiguous()
    return tiled.view(torch.uint8)


def _nibbles(codes: Tensor) -> Tensor:
    """Codes 0 … 15 [rows, columns] as bytes [tiles, groups, 256]: words of eight inputs, even ones in the low half."""
    rows, columns = codes.shape
    # [tile, row, group, quarter, step, parity] to [tile, group, quarter, row, parity, step]
    split = codes.view(rows // UNIT, UNIT, columns // INT4_GROUP, 4, 4, 2).permute(0, 2, 3, 1, 5, 4)
    pairs = split[..., 0::2] | (split[..., 1::2] << 4)
    return pairs.reshape(rows // UNIT, columns // INT4_GROUP, _CODE_BYTES)
