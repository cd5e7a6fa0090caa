"""Attention scores that torch's own attention does not compute: capped ones, and sinks."""

from __future__ import annotations

import torch
from torch import Tensor

from selfspec_tune.engine.layers.linear import is_widened


def attention_by_scores(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scale: float,
    *,
    cap: float | None = None,
    sinks: Tensor | None = None,
    is_rounded: bool = False,
) -> Tensor:
    """Attention of queries [..., rows, size] over keys and values [..., positions, size]; [..., rows, size].

    Scores are scaled, capped, added ``mask`` [..., rows, positions], rounded to the queries' type if ``is_rounded``,
    and with ``sinks`` [..., rows, 1] share their softmax with one more score that has no value. All are there at once:
    few rows should be given.
    """
    dtype = queries.dtype
    if is_widened(queries):
        queries, keys, values = queries.float(), keys.float(), values.float()
    scores = (queries @ keys.transpose(-1, -2)).float() * scale
    if cap is not None:
        scores = (scores / cap).tanh_().mul_(cap)
    if mask is not None:
        scores = scores + mask
    if is_rounded:
        scores = scores.to(dtype).float()
    if sinks is not None:
        scores = torch.cat((scores, sinks.float()), -1)
    shares = scores.softmax(-1).to(values.dtype)
    return (shares[..., : keys.shape[-2]] @ values).to(dtype)
