"""Attentions by their plans, over the cache that they share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selfspec_tune.engine.layers.cache import MAX_MASKED_TOKENS, CachePlace, CacheState, seen
from selfspec_tune.engine.layers.linear import Dense, attention
from selfspec_tune.engine.layers.norm import HeadNorm, Norm
from selfspec_tune.engine.layers.rope import Rotation, rotate
from selfspec_tune.engine.layers.stream import Stream
from selfspec_tune.engine.layers.sublayer import Half
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import AttentionPlan
from selfspec_tune.plans.attention import QkNormKind, WeightOrder


class Projected(NamedTuple):
    """Queries [tokens, heads, size], and keys and values [tokens, kv heads, size], all but values turned."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class Attention(Half):
    """Norm, queries, keys and values in one, positions, cached grouped-query attention, output, residual.

    ``projections``: queries, keys and values, in the order of rows that the plan says, and the output.
    """

    def __init__(self, plan: AttentionPlan, bound: BoundModel, layer: int, state: CacheState) -> None:
        modules = [bound.module(path, layer) for path in plan.inputs]
        into = Dense.of(*modules, is_transposed=plan.is_transposed)
        out = Dense.of(bound.module(plan.output, layer), is_transposed=plan.is_transposed)
        super().__init__(plan, bound, layer, (into, out))
        self.plan = plan
        self.inner = None if plan.inner is None else Norm(plan.inner, bound, layer)
        self._state = state
        self.qk_norms: tuple[Norm | HeadNorm, Norm | HeadNorm] | None = None
        if plan.qk_norm is not None:
            kind = HeadNorm if plan.qk_norm.kind is QkNormKind.EACH_HEAD else Norm
            self.qk_norms = kind(plan.qk_norm.query, bound, layer), kind(plan.qk_norm.key, bound, layer)

    def __call__(self, stream: Stream, start: int) -> Stream:
        state, end = self._state, start + stream.hidden.shape[0]
        queries, keys, values = self.project(stream, state.rotation(self.plan, start, end))
        cached_keys, cached_values = state.keys[self.layer], state.values[self.layer]
        cached_keys[:, start:end] = keys.transpose(0, 1)
        cached_values[:, start:end] = values.transpose(0, 1)
        return self.add(stream, self.attend(queries, cached_keys[:, :end], cached_values[:, :end], start))

    def at(self, stream: Stream, place: CachePlace) -> Stream:
        """The same with nothing read on the host: positions and masks are tensors."""
        state = self._state
        queries, keys, values = self.project(stream, place.rotation(self.plan))
        cached_keys, cached_values = state.keys[self.layer], state.values[self.layer]
        cached_keys.index_copy_(1, place.positions, keys.transpose(0, 1))
        cached_values.index_copy_(1, place.positions, values.transpose(0, 1))
        mask = place.masks[self.plan.reach]
        bucket = mask.shape[1]
        return self.add(stream, self._attend_grouped(queries, cached_keys[:, :bucket], cached_values[:, :bucket], mask))

    def project(self, stream: Stream, rotation: Rotation) -> Projected:
        """Queries, keys and values of the stream's tokens, at the positions that ``rotation`` is of."""
        plan = self.plan
        qkv = self._linear[0](self._read(stream))
        if plan.clip is not None:
            qkv = qkv.clamp(-plan.clip, plan.clip)
        heads, kv_heads = plan.num_heads, plan.num_kv_heads
        if plan.order is WeightOrder.GROUPED:
            groups = qkv.view(-1, kv_heads, heads // kv_heads + 2, plan.head_size)
            qk = torch.cat((groups[:, :, :-2].flatten(1, 2), groups[:, :, -2]), 1)
            values = groups[:, :, -1]
        else:
            qkv = qkv.view(-1, heads + 2 * kv_heads, plan.head_size)
            qk, values = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if plan.qk_norm is not None and not plan.qk_norm.is_after_rope:
            qk = self._normalise(qk)
        if plan.rope is not None:
            assert rotation.cos is not None
            assert rotation.signed_sin is not None
            qk = rotate(qk, plan.rope, rotation.cos, rotation.signed_sin)
        if plan.qk_norm is not None and plan.qk_norm.is_after_rope:
            qk = self._normalise(qk)
        queries, keys = qk[:, :heads], qk[:, heads:]
        return Projected(queries if rotation.growth is None else queries * rotation.growth, keys, values)

    def add(self, stream: Stream, attended: Tensor) -> Stream:
        """The stream with the output of attended values [tokens, heads * size]."""
        return self._add(stream, self._linear[1](attended if self.inner is None else self.inner(attended)))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """Attention of [tokens, heads, size] queries that follow ``start`` positions; [tokens, heads * size].

        ``keys`` and ``values`` [kv heads, positions, size] are of all positions up to the last query's own.
        """
        num_tokens = queries.shape[0]
        if num_tokens > MAX_MASKED_TOKENS:
            return self._attend_prompt(queries, keys, values, start)
        reach = self.plan.reach
        first = reach.first(start)
        mask = None if num_tokens == 1 else self._state.mask(reach, start, num_tokens)
        return self._attend_grouped(queries, keys[:, first:], values[:, first:], mask)

    def attend_masked(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of [tokens, heads, size] queries where ``mask`` [tokens, keys] is true; [tokens, heads * size]."""
        attended = attention(queries.transpose(0, 1)[None], keys[None], values[None], mask, self.plan.scale)
        return attended[0].transpose(0, 1).reshape(queries.shape[0], -1)

    def _normalise(self, qk: Tensor) -> Tensor:
        """Queries and keys [tokens, heads + kv heads, size] by their norms."""
        assert self.qk_norms is not None
        assert self.plan.qk_norm is not None
        parts = qk[:, : self.plan.num_heads], qk[:, self.plan.num_heads :]
        if self.plan.qk_norm.kind is QkNormKind.WIDTH:
            normed = [norm(part.flatten(1)).view(part.shape) for norm, part in zip(self.qk_norms, parts, strict=True)]
        else:
            normed = [norm(part) for norm, part in zip(self.qk_norms, parts, strict=True)]
        return torch.cat(normed, 1)

    def _attend_grouped(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The same under ``mask`` [tokens * group, keys], None for all keys."""
        state, num_tokens = self._state, queries.shape[0]
        # The queries of one KV head become rows of one matrix: no key is repeated.
        grouped = queries.view(num_tokens, state.num_kv_heads, state.group, state.head_size).transpose(0, 1)
        grouped = grouped.reshape(1, state.num_kv_heads, num_tokens * state.group, state.head_size)
        attended = attention(grouped, keys[None], values[None], mask, self.plan.scale)
        # Some CUDA kernels return it in another memory order, which no view can regroup.
        attended = attended.reshape(state.num_kv_heads, num_tokens, state.group * state.head_size)
        return attended.transpose(0, 1).reshape(num_tokens, -1)

    def _attend_prompt(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """The same for many tokens at once."""
        num_tokens = queries.shape[0]
        if start > 0:
            rows = torch.arange(start, start + num_tokens, device=queries.device)
            columns = torch.arange(keys.shape[1], device=queries.device)
            return self.attend_masked(queries, keys, values, seen(self.plan.reach, rows, columns))
        attended = attention(
            queries.transpose(0, 1)[None], keys[None], values[None], None, self.plan.scale, is_causal=True
        )
        return attended[0].transpose(0, 1).reshape(num_tokens, -1)
