"""Rotary positions: tables of cosines and sines, and turning queries and keys by them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans.attention import RopePairs, RopePlan
from selfspec_tune.plans.decoder import DecoderPlan

Table = tuple[Tensor, Tensor]
"""Cosines and signed sines, [positions, 1, rotated size] each."""


class Rotation(NamedTuple):
    """What positions do to queries and keys: [tokens, 1, …] each; None where nothing is done."""

    cos: Tensor | None = None
    signed_sin: Tensor | None = None
    growth: Tensor | None = None


def rope_plans(plan: DecoderPlan) -> dict[str, RopePlan]:
    """How each table of a decoder is used, by its name: everywhere alike."""
    ropes = {layer.attention.rope for layer in plan.layers if layer.attention.rope is not None}
    found = {rope.table: rope for rope in ropes}
    if len(found) < len(ropes):
        raise ValueError("a table of rotary positions is used in two ways")
    return found


def make_table(rope: RopePlan, bound: BoundModel, positions: Tensor, dtype: torch.dtype) -> Table:
    """The table of ``rope`` at ``positions`` [positions]: of the model's ``dtype``, or of float32 where it says so.

    rotated(x) = x * cos + partner(x) * signed_sin, where the sines of each pair's first dimension are negated.
    """
    frequencies, factor = _frequencies(rope, bound, positions.device)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos() * factor, angles.sin() * (-factor if bound.plan.ropes[rope.table].is_reversed else factor)
    if rope.pairs is RopePairs.HALVES:
        cos, signed_sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    else:
        cos, signed_sin = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
    dtype = torch.float32 if rope.in_float32 else dtype
    return cos.to(dtype).unsqueeze(1).contiguous(), signed_sin.to(dtype).unsqueeze(1).contiguous()


def _frequencies(rope: RopePlan, bound: BoundModel, device: torch.device) -> tuple[Tensor, float]:
    table = bound.plan.ropes[rope.table]
    if table.module is None:
        assert table.theta is not None
        exponents = torch.arange(0, rope.size, 2, dtype=torch.int64, device=device).float() / rope.size
        return 1.0 / table.theta**exponents, 1.0
    module = bound.module(table.module)
    frequencies: Tensor = getattr(module, table.frequencies)
    return frequencies.to(device, torch.float32), float(getattr(module, table.factor))


def rotate(heads: Tensor, rope: RopePlan, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Heads [tokens, heads, size], their first dimensions turned by cosines and signed sines [tokens, 1, rotated]."""
    if rope.size == heads.shape[-1]:
        return _rotate(heads, rope, cos, signed_sin)
    turned = _rotate(heads[..., : rope.size], rope, cos, signed_sin)
    return torch.cat((turned, heads[..., rope.size :]), -1)


def _rotate(heads: Tensor, rope: RopePlan, cos: Tensor, signed_sin: Tensor) -> Tensor:
    if rope.pairs is RopePairs.HALVES:
        partner = heads.roll(rope.size // 2, -1)
    else:
        partner = heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned = heads * cos + partner * signed_sin
    return turned.to(heads.dtype) if rope.in_float32 else turned
