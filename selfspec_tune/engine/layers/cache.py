"""What attentions share: the KV cache, tables of what positions do, and masks by what a position may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from selfspec_tune.engine.layers.rope import Rotation, Table, make_table, rope_plans
from selfspec_tune.errors import UsageError
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import AttentionPlan
from selfspec_tune.plans.attention import AlibiPlan, BiasRounding, GrowthPlan, Reach, ReachKind

MAX_MASKED_TOKENS = 33  # one verification: the last token and up to 32 drafts


def seen(reach: Reach, rows: Tensor, columns: Tensor) -> Tensor:
    """Whether each of the positions ``rows`` [tokens] sees each of ``columns`` [keys]: bool [tokens, keys]."""
    rows, columns = rows[:, None], columns[None]
    causal = columns <= rows
    if reach.kind is ReachKind.WINDOW:
        return causal & (columns > rows - reach.size)
    if reach.kind is ReachKind.CHUNK:
        return causal & (columns // reach.size == rows // reach.size)
    return causal


class CacheState:
    """One tensor of keys and one of values, ``[layers, kv heads, capacity, head size]`` each, and what goes with them.

    ``positions`` [capacity]; ``tables``: rotary positions by their names in the plan; ``growth`` [capacity, 1, 1]: what
    queries are multiplied with; ``biases`` [kv heads, group, capacity]: what is added to scores. These, and masks,
    follow from positions alone and are made once.
    """

    def __init__(self, bound: BoundModel, dtype: torch.dtype, device: torch.device) -> None:
        self._bound, self._dtype, self._device = bound, dtype, device
        self._plans = [layer.attention for layer in bound.plan.layers]
        first = self._plans[0]
        self.num_heads, self.num_kv_heads, self.head_size = first.num_heads, first.num_kv_heads, first.head_size
        self.group = self.num_heads // self.num_kv_heads
        self.capacity = 0
        self._span, self._rotations = (0, 0), dict[tuple[str | None, GrowthPlan | None], Rotation]()

    def allocate(self, capacity: int) -> None:
        """Room for ``capacity`` positions; what was cached is lost."""
        shape = (len(self._plans), self.num_kv_heads, capacity, self.head_size)
        self.keys, self.values = (_room(shape, self._dtype, self._device) for _ in range(2))
        self._span = 0, 0
        positions = torch.arange(capacity, device=self._device)
        ropes = rope_plans(self._bound.plan)
        self.tables: dict[str, Table] = {
            name: make_table(rope, self._bound, positions, self._dtype) for name, rope in ropes.items()
        }
        growths = {plan.growth for plan in self._plans if plan.growth is not None}
        self.growth = {growth: _grown(growth, positions).to(self._dtype) for growth in growths}
        alibis = {plan.alibi for plan in self._plans if plan.alibi is not None}
        self.biases = {alibi: self._bias(alibi, positions) for alibi in alibis}
        self._reaches = {plan.reach for plan in self._plans}
        banded = {Reach(), *(reach for reach in self._reaches if reach.kind is ReachKind.WINDOW)}
        self._bands = {reach: self._make_band(reach, capacity) for reach in banded}
        self.positions = positions
        self._open, self._closed = (
            torch.tensor(value, dtype=self._dtype, device=self._device) for value in (0.0, -torch.inf)
        )
        self.capacity = capacity

    def copy(self, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first ``length`` positions."""
        return self.keys[:, :, :length].clone(), self.values[:, :, :length].clone()

    def restore(self, held: tuple[Tensor, Tensor]) -> None:
        """The inverse of `copy`."""
        keys, values = held
        self.keys[:, :, : keys.shape[2]], self.values[:, :, : values.shape[2]] = keys, values

    def clear(self, start: int, end: int | None = None) -> None:
        """Zeros in the positions from ``start`` to ``end``, or to the last."""
        self.keys[:, :, start:end] = 0
        self.values[:, :, start:end] = 0

    def rotation(self, plan: AttentionPlan, start: int, end: int) -> Rotation:
        """What the positions from ``start`` to ``end`` do to the queries and keys of an attention."""
        if self._span != (start, end):
            self._span, self._rotations = (start, end), {}
        key = None if plan.rope is None else plan.rope.table, plan.growth
        rotation = self._rotations.get(key)
        if rotation is None:
            rotation = self._rotations[key] = self.rotation_at(plan, slice(start, end))
        return rotation

    def rotation_at(self, plan: AttentionPlan, positions: slice | Tensor) -> Rotation:
        """What any ``positions`` [tokens] do to the queries and keys of an attention."""
        cos, signed_sin = (None, None) if plan.rope is None else self.tables[plan.rope.table]
        growth = None if plan.growth is None else self.growth[plan.growth]
        return Rotation(*(None if table is None else table[positions] for table in (cos, signed_sin, growth)))

    def place(self, positions: Tensor, bucket: int) -> CachePlace:
        """Rotations and masks of tokens at ``positions`` [tokens] over the first ``bucket`` positions of the cache."""
        rows = positions[:, None].expand(-1, self.group).flatten()
        masks = {
            reach: torch.where(seen(reach, rows, self.positions[:bucket]), self._open, self._closed)
            for reach in self._reaches
        }
        tables = {
            name: (cos.index_select(0, positions), signed_sin.index_select(0, positions))
            for name, (cos, signed_sin) in self.tables.items()
        }
        growth = {plan: table.index_select(0, positions) for plan, table in self.growth.items()}
        return CachePlace(positions, tables, growth, masks)

    def mask(self, reach: Reach, start: int, num_tokens: int) -> Tensor:
        """Mask [tokens * group, keys] of tokens after ``start`` positions, from the first that any of them sees on."""
        first, end = reach.first(start), start + num_tokens
        band = self._bands.get(reach)
        if band is None and reach.first(end - 1) == first:
            band = self._bands[Reach()]  # all in one chunk
        if band is None:
            rows = self.positions[start:end].repeat_interleave(self.group)
            return torch.where(seen(reach, rows, self.positions[first:end]), self._open, self._closed)
        offset = self.capacity - start
        mask = band[: num_tokens * self.group, offset + first : offset + end]
        # CUDA kernels read it in vectors and do not look where a view begins: "misaligned address".
        return mask if mask.device.type == "cpu" else mask.clone()

    def _bias(self, alibi: AlibiPlan, positions: Tensor) -> Tensor:
        """[kv heads, group, positions]"""
        slopes = torch.tensor(alibi.slopes, device=positions.device).view(self.num_kv_heads, self.group, 1)
        where = positions.float()
        if alibi.rounding is BiasRounding.BFLOAT16:
            slopes, where = (_rounded(factor, alibi.rounding, self._dtype) for factor in (slopes, where))
        return alibi.scale * _rounded(slopes * where, alibi.rounding, self._dtype)

    def _make_band(self, reach: Reach, capacity: int) -> Tensor:
        """[tokens * group, 2 * capacity]: row t (each ``group`` times) is position ``capacity`` + t."""
        columns = torch.arange(2 * capacity, device=self._device)
        rows = torch.arange(MAX_MASKED_TOKENS, device=self._device) + capacity
        band = torch.zeros(MAX_MASKED_TOKENS, 2 * capacity, dtype=self._dtype, device=self._device)
        band.masked_fill_(~seen(reach, rows, columns), -torch.inf)
        return band.repeat_interleave(self.group, 0)


def _rounded(values: Tensor, rounding: BiasRounding, dtype: torch.dtype) -> Tensor:
    """In float32, rounded to what a bias is rounded to."""
    types = {BiasRounding.FLOAT32: torch.float32, BiasRounding.TYPE: dtype, BiasRounding.BFLOAT16: torch.bfloat16}
    return values.to(types[rounding]).float()


def _grown(growth: GrowthPlan, positions: Tensor) -> Tensor:
    """[positions, 1, 1]"""
    steps = torch.floor((positions.float() + growth.offset) / growth.length)
    return (1 + growth.beta * torch.log1p(steps))[:, None, None]


def _room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.zeros(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, its parent on a CPU
        raise UsageError(
            f"No memory for a cache of {shape[2]} positions on {device}. Use shorter prompts, a smaller "
            f"`max_new_tokens` or `extra_memory`, or a smaller model. ({str(error).splitlines()[0]})"
        ) from error


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where the tokens of a pass stand, as tensors on the device, so that a captured pass works at any length.

    ``positions`` [tokens]; ``tables`` and ``growth`` as those of `CacheState`, at the positions; ``masks``
    [tokens * group, bucket] by reach: added to the scores, minus infinity at what is not seen.
    """

    positions: Tensor
    tables: Mapping[str, Table]
    growth: Mapping[GrowthPlan, Tensor]
    masks: Mapping[Reach, Tensor]

    def rotation(self, plan: AttentionPlan) -> Rotation:
        """What the positions do to the queries and keys of an attention."""
        cos, signed_sin = (None, None) if plan.rope is None else self.tables[plan.rope.table]
        return Rotation(cos, signed_sin, None if plan.growth is None else self.growth[plan.growth])
