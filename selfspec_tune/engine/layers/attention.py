"""Attentions by their plans, over the cache that they share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from selfspec_tune.engine.layers.cache import MAX_MASKED_TOKENS, CachePlace, CacheState, seen
from selfspec_tune.engine.layers.linear import Dense, attention
from selfspec_tune.engine.layers.norm import HeadNorm, Norm
from selfspec_tune.engine.layers.rope import Rotation, rotate
from selfspec_tune.engine.layers.scores import attention_by_scores
from selfspec_tune.engine.layers.sublayer import BaseSubLayer, Stream
from selfspec_tune.models.bound import BoundModel
from selfspec_tune.plans import AttentionPlan
from selfspec_tune.plans.attention import QkNormKind, Reach, WeightOrder

_ROWS = 256  # of a prompt's mask that are there at once


class Projected(NamedTuple):
    """Queries [tokens, heads, size], and keys and values [tokens, kv heads, size], all but values turned.

    ``gate`` [tokens, heads * size]: what attended values are multiplied with; None where there is no gate.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    gate: Tensor | None = None


class Attention(BaseSubLayer):
    """Norm, queries, keys and values in one, positions, cached grouped-query attention, output, residual.

    ``projections``: queries, keys and values, in the order of rows that the plan says, the output, and the gate where
    there is one.
    """

    def __init__(self, plan: AttentionPlan, bound: BoundModel, layer: int, state: CacheState) -> None:
        modules = [bound.module(path, layer) for path in plan.inputs]
        into = Dense.of(*modules, is_transposed=plan.is_transposed)
        out = Dense.of(bound.module(plan.output, layer), is_transposed=plan.is_transposed)
        gate = () if plan.gate is None else (Dense.of(bound.module(plan.gate, layer)),)
        super().__init__(plan, bound, layer, (into, out, *gate))
        self.plan = plan
        self._is_plain = plan.cap is None and plan.sinks is None and plan.alibi is None  # torch's own attention does
        self.sinks = None if plan.sinks is None else bound.tensor(plan.sinks, layer).view(plan.num_kv_heads, -1)
        self.inner = None if plan.inner is None else Norm(plan.inner, bound, layer)
        self._state = state
        self.qk_norms: tuple[Norm | HeadNorm, Norm | HeadNorm] | None = None
        if plan.qk_norm is not None:
            kind = HeadNorm if plan.qk_norm.kind is QkNormKind.EACH_HEAD else Norm
            self.qk_norms = kind(plan.qk_norm.query, bound, layer), kind(plan.qk_norm.key, bound, layer)

    def __call__(self, stream: Stream, start: int) -> Stream:
        state, end = self._state, start + stream.hidden.shape[0]
        projected = self.project(stream, state.rotation(self.plan, start, end))
        queries, keys, values, _ = projected
        cached_keys, cached_values = state.keys[self.layer], state.values[self.layer]
        cached_keys[:, start:end] = keys.transpose(0, 1)
        cached_values[:, start:end] = values.transpose(0, 1)
        attended = self.attend(queries, cached_keys[:, :end], cached_values[:, :end], start)
        return self.add(stream, attended, projected.gate)

    def at(self, stream: Stream, place: CachePlace) -> Stream:
        """Pass a stream on as a call does, with nothing read on the host: positions and mask are tensors."""
        state = self._state
        projected = self.project(stream, place.rotation(self.plan))
        queries, keys, values, _ = projected
        cached_keys, cached_values = state.keys[self.layer], state.values[self.layer]
        cached_keys.index_copy_(1, place.positions, keys.transpose(0, 1))
        cached_values.index_copy_(1, place.positions, values.transpose(0, 1))
        mask = place.masks[self.plan.reach]
        bucket = mask.shape[1]
        keys, values = cached_keys[:, :bucket], cached_values[:, :bucket]
        attended = self._attend_grouped(queries, keys, values, mask, slice(0, bucket))
        return self.add(stream, attended, projected.gate)

    def project(self, stream: Stream, rotation: Rotation) -> Projected:
        """Queries, keys and values of the stream's tokens, at the positions that ``rotation`` is of."""
        plan = self.plan
        hidden = self._read(stream)
        qkv = self._linear[0](hidden)
        if plan.clip is not None and not plan.is_clip_late:
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
        if plan.clip is not None and plan.is_clip_late:
            qk, values = qk.clamp(-plan.clip, plan.clip), values.clamp(-plan.clip, plan.clip)
        if plan.rope is not None:
            assert rotation.cos is not None
            assert rotation.signed_sin is not None
            qk = rotate(qk, plan.rope, rotation.cos, rotation.signed_sin)
        if plan.qk_norm is not None and plan.qk_norm.is_after_rope:
            qk = self._normalise(qk)
        queries, keys = qk[:, :heads], qk[:, heads:]
        if rotation.growth is not None:
            queries = queries * rotation.growth
        return Projected(queries, keys, values, self._linear[2](hidden).sigmoid_() if plan.gate is not None else None)

    def add(self, stream: Stream, attended: Tensor, gate: Tensor | None = None) -> Stream:
        """The stream with the output of attended values [tokens, heads * size], times the ``gate`` of `Projected`."""
        if gate is not None:
            attended = attended * gate
        return self._add(stream, self._linear[1](attended if self.inner is None else self.inner(attended)))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """Attention of [tokens, heads, size] queries that follow ``start`` positions; [tokens, heads * size].

        ``keys`` and ``values`` [kv heads, positions, size] are of all positions up to the last query's own.
        """
        num_tokens = queries.shape[0]
        if num_tokens > MAX_MASKED_TOKENS:
            return self._attend_prompt(queries, keys, values, start)
        first = self.plan.reach.first(start)
        mask = None if num_tokens == 1 else self._state.mask(self.plan.reach, start, num_tokens)
        if first:
            keys, values = keys[:, first:], values[:, first:]
        return self._attend_grouped(queries, keys, values, mask, slice(first, start + num_tokens))

    def attend_masked(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor, columns: Tensor) -> Tensor:
        """Attention of [tokens, heads, size] queries over keys that stand at positions ``columns``, in any order.

        Only where ``allowed`` [tokens, keys] is true; [tokens, heads * size].
        """
        if self._is_plain:
            attended = attention(queries.transpose(0, 1)[None], keys[None], values[None], allowed, self.plan.scale)
            return attended[0].transpose(0, 1).reshape(queries.shape[0], -1)
        pieces = range(0, queries.shape[0], _ROWS)
        return torch.cat(
            [
                self._attend_grouped(queries[a : a + _ROWS], keys, values, self._mask(allowed[a : a + _ROWS]), columns)
                for a in pieces
            ]
        )

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

    def _attend_grouped(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, columns: slice | Tensor
    ) -> Tensor:
        """Attention of [tokens, heads, size] queries over keys that stand at positions ``columns``.

        Under ``mask`` [tokens * group, keys], None for all keys; [tokens, heads * size].
        """
        state, num_tokens = self._state, queries.shape[0]
        # The queries of one KV head become rows of one matrix: no key is repeated.
        grouped = queries.view(num_tokens, state.num_kv_heads, state.group, state.head_size).transpose(0, 1)
        grouped = grouped.reshape(1, state.num_kv_heads, num_tokens * state.group, state.head_size)
        if self._is_plain:
            attended = attention(grouped, keys[None], values[None], mask, self.plan.scale)
        else:
            attended = attention_by_scores(
                *(grouped, keys[None], values[None], self._biased(mask, num_tokens, columns), self.plan.scale),
                cap=self.plan.cap,
                sinks=None if self.sinks is None else self.sinks.repeat(1, num_tokens)[None, :, :, None],
                is_rounded=self.plan.rounds_scores,
            )
        # Some CUDA kernels return it in another memory order, which no view can regroup.
        attended = attended.reshape(state.num_kv_heads, num_tokens, state.group * state.head_size)
        return attended.transpose(0, 1).reshape(num_tokens, -1)

    def _biased(self, mask: Tensor | None, num_tokens: int, columns: slice | Tensor) -> Tensor | None:
        """The mask, if any, and what is added to scores by position: [1, kv heads, tokens * group, keys]."""
        if self.plan.alibi is None:
            return mask
        bias = self._state.biases[self.plan.alibi][:, :, columns].repeat(1, num_tokens, 1)[None]
        return bias if mask is None else bias + mask

    def _mask(self, allowed: Tensor) -> Tensor:
        """[tokens * group, keys], added to scores: minus infinity where ``allowed`` [tokens, keys] is false."""
        mask = torch.zeros(allowed.shape, dtype=self._state.keys.dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, -torch.inf).repeat_interleave(self._state.group, 0)

    def _attend_prompt(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """`attend` for more tokens than have a mask ready: a part of them at a time."""
        num_tokens, reach = queries.shape[0], self.plan.reach
        sees_all = reach.first(start + num_tokens - 1) == 0
        if sees_all and self._is_plain:
            return self._attend_causally(queries, keys, values, start)
        found = []
        for begin in range(0, num_tokens, _ROWS):
            part = queries[begin : begin + _ROWS]
            first, own, end = reach.first(start + begin), start + begin, start + begin + part.shape[0]
            columns = torch.arange(first, end, device=keys.device)
            mask = self._mask(seen(reach, columns[own - first :], columns))
            found.append(self._attend_grouped(part, keys[:, first:end], values[:, first:end], mask, slice(first, end)))
        return torch.cat(found)

    def _attend_causally(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """`attend` where a query sees all earlier positions, and scores are scaled alone."""
        num_tokens = queries.shape[0]
        if start > 0:
            rows = torch.arange(start, start + num_tokens, device=queries.device)
            columns = torch.arange(keys.shape[1], device=queries.device)
            return self.attend_masked(queries, keys, values, seen(Reach(), rows, columns), columns)
        attended = attention(
            queries.transpose(0, 1)[None], keys[None], values[None], None, self.plan.scale, is_causal=True
        )
        return attended[0].transpose(0, 1).reshape(num_tokens, -1)
