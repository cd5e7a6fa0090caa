"""Weight-only int8 and int4 copies in the layouts that the kernels read.

int8: one scale a row. int4: one bfloat16 scale and, where asymmetric, one minimum for
every 32 inputs of a row; sixteen rows interleaved (layout: kernels.c, ``dot_int4``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfspec_tune.engine.native.library import INT4_GROUP, UNIT

_ROWS_AT_ONCE = 4096  # bounds the float32 working copy


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of weight [rows, cols]: int8 [rows, cols] and float32 scales [rows]."""
    packed = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0])
    for start in range(0, weight.shape[0], _ROWS_AT_ONCE):
        part = weight[start : start + _ROWS_AT_ONCE].float()
        scale = part.abs().amax(1).clamp(min=1e-12) / 127
        scales[start : start + _ROWS_AT_ONCE] = scale
        packed[start : start + _ROWS_AT_ONCE] = (part / scale[:, None]).round().to(torch.int8)
    return packed, scales


def pack_int4(weight: Tensor, *, asymmetric: bool = True) -> Tensor:
    """Bytes [tiles, groups, bytes of a group] of weight [rows, cols]; cols must be a multiple of 32."""
    rows, cols = weight.shape
    if cols % INT4_GROUP:
        raise ValueError(f"int4 needs a multiple of {INT4_GROUP} inputs, not {cols}")
    groups = cols // INT4_GROUP
    tiles = -(-rows // UNIT)
    width = 2 * UNIT * (2 if asymmetric else 1)
    packed = torch.empty(tiles, groups, width + UNIT * INT4_GROUP // 2, dtype=torch.uint8)
    step = _ROWS_AT_ONCE // UNIT
    for start in range(0, tiles, step):
        part = weight[start * UNIT : (start + step) * UNIT].float()
        short = -part.shape[0] % UNIT
        part = torch.nn.functional.pad(part, (0, 0, 0, short))
        quantised, scales, minima = quantise_int4(part.view(-1, groups, INT4_GROUP), asymmetric=asymmetric)
        block = packed[start : start + step]
        block[..., : 2 * UNIT] = _tiled_bytes(scales)
        if minima is not None:
            block[..., 2 * UNIT : 4 * UNIT] = _tiled_bytes(minima)
        block[..., width:] = _nibbles(quantised)
    return packed


def quantise_int4(grouped: Tensor, *, asymmetric: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Numbers 0 … 15 [rows, groups, 32], bfloat16 scales and, where asymmetric, minima [rows, groups].

    A value is scale * q + minimum, or scale * (q - 8).
    """
    if asymmetric:
        low, high = grouped.amin(-1), grouped.amax(-1)
        minima = low.bfloat16()
        scales = ((high - minima.float()) / 15).clamp(min=1e-12).bfloat16()
        numbers = (grouped - minima.float()[..., None]) / scales.float()[..., None]
        return numbers.round().clamp(0, 15).to(torch.uint8), scales, minima
    extreme = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))[..., 0]
    scales = torch.where(extreme == 0, 1e-12, -extreme / 8).bfloat16()
    numbers = grouped / scales.float()[..., None] + 8
    return numbers.round().clamp(0, 15).to(torch.uint8), scales, None


def _tiled_bytes(values: Tensor) -> Tensor:
    """bfloat16 [rows, groups] as bytes [tiles, groups, 2 * 16]."""
    tiled = values.view(-1, UNIT, values.shape[1]).transpose(1, 2).contiguous()
    return tiled.view(torch.uint8)


def _nibbles(numbers: Tensor) -> Tensor:
    """Numbers [rows, groups, 32] as bytes [tiles, groups, 256]: words of eight inputs, even ones in the low half."""
    rows, groups, _ = numbers.shape
    # [tile, row, group, quarter, step, parity] -> [tile, group, quarter, row, parity, step]
    split = numbers.view(rows // UNIT, UNIT, groups, 4, 4, 2).permute(0, 2, 3, 1, 5, 4)
    pairs = split[..., 0::2] | (split[..., 1::2] << 4)
    return pairs.reshape(rows // UNIT, groups, -1)
