"""bfloat16 multiplied in float32, where the processor has no products of bfloat16 and torch imitates them slowly.

Weights are widened a few rows at a time into a buffer that stays in the caches, so that they are
read at two bytes each. A result is rounded to bfloat16 once, at its end. Elsewhere torch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from selfspec_tune.models.devices import cpu_computes_bfloat16

# Up to here torch's imitation, which reads each weight once, is as fast: measured on AVX2.
_FEW_TOKENS = 4
PIECE_ROWS = 256  # of a weight, widened at once: with fewer the products are slower, with more it leaves the caches


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
