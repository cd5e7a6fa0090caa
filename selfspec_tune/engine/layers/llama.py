"""Attention and MLP sub-layers of a Llama-shaped model over one KV cache that they share.

Pre-norm decoders: RMSNorm, rotary positions, grouped-query attention, gated MLP with SiLU.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec_tune.engine.layers.linear import Dense, Projection, attention
from selfspec_tune.errors import UsageError
from selfspec_tune.models import LoadedModel

MAX_MASKED_TOKENS = 33  # one verification: the last token and up to 32 drafts


class SubLayer(Protocol):
    """An attention or an MLP with its norm and residual."""

    projections: tuple[Dense, Dense]

    def __call__(self, hidden: Tensor, start: int) -> Tensor:
        """Pass hidden [tokens, width] on, its tokens following ``start`` positions of the cache."""

    def with_projections(self, into: Projection, out: Projection) -> Self:
        """The same sub-layer, cache and norm shared, computing with other linear layers."""


class Norm:
    """RMSNorm with the module's weight."""

    def __init__(self, module: nn.Module) -> None:
        self.weight: Tensor = module.weight.data  # type: ignore[assignment]
        self.epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
        self.shape = tuple(self.weight.shape)

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.shape, self.weight, self.epsilon)


class CacheState:
    """What the attentions share: the KV cache, rotary tables and one causal mask to slice."""

    def __init__(self, loaded: LoadedModel, config: Any) -> None:
        self._loaded = loaded
        self.num_heads = int(config.num_attention_heads)
        self.num_kv_heads = int(getattr(config, "num_key_value_heads", None) or self.num_heads)
        self.group = self.num_heads // self.num_kv_heads
        self.head_size = int(getattr(config, "head_dim", None) or config.hidden_size // self.num_heads)
        self.capacity = 0

    def allocate(self, capacity: int) -> None:
        """Room for ``capacity`` positions; what was cached is lost."""
        device, dtype = self._loaded.device, self._loaded.dtype
        shape = (self._loaded.num_layers, self.num_kv_heads, capacity, self.head_size)
        self.keys, self.values = _room(shape, dtype, device), _room(shape, dtype, device)
        positions = torch.arange(capacity, device=device)[None]
        probe = torch.empty(1, 1, device=device, dtype=dtype)
        decoder: Any = self._loaded.model.base_model
        cos, sin = decoder.rotary_emb(probe, positions)
        half = self.head_size // 2
        # rotate_half(x) * sin == roll(x) * sin with the first half of sin negated
        self.cos = cos[0].unsqueeze(1).contiguous()
        self.signed_sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).unsqueeze(1).contiguous()
        self._band = self._make_band(capacity)
        self._columns = torch.arange(capacity, device=device)
        self._open, self._closed = (torch.tensor(value, dtype=dtype, device=device) for value in (0.0, -torch.inf))
        self.capacity = capacity

    def copy(self, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first ``length`` positions."""
        return self.keys[:, :, :length].clone(), self.values[:, :, :length].clone()

    def restore(self, held: tuple[Tensor, Tensor]) -> None:
        """The inverse of `copy`."""
        keys, values = held
        self.keys[:, :, : keys.shape[2]], self.values[:, :, : values.shape[2]] = keys, values

    def clear_after(self, length: int) -> None:
        """Zeros in all but the first ``length`` positions."""
        self.keys[:, :, length:] = 0
        self.values[:, :, length:] = 0

    def _make_band(self, capacity: int) -> Tensor:
        """[tokens * group, 2 * capacity]: row t (each ``group`` times) sees columns up to capacity + t."""
        columns = torch.arange(2 * capacity, device=self._loaded.device)
        rows = torch.arange(MAX_MASKED_TOKENS, device=self._loaded.device) + capacity
        band = torch.zeros(MAX_MASKED_TOKENS, 2 * capacity, dtype=self._loaded.dtype, device=columns.device)
        band.masked_fill_(columns[None] > rows[:, None], -torch.inf)
        return band.repeat_interleave(self.group, 0)

    def place(self, positions: Tensor, bucket: int) -> CachePlace:
        """Rotation and mask of tokens at ``positions`` [tokens] over the first ``bucket`` positions of the cache."""
        rows = positions[:, None].expand(-1, self.group).reshape(-1, 1)
        mask = torch.where(self._columns[:bucket] <= rows, self._open, self._closed)
        return CachePlace(
            positions, self.cos.index_select(0, positions), self.signed_sin.index_select(0, positions), mask
        )

    def mask(self, start: int, num_tokens: int) -> Tensor:
        """Causal mask [tokens * group, start + tokens] for tokens that follow ``start`` positions."""
        offset = self.capacity - start
        mask = self._band[: num_tokens * self.group, offset : offset + start + num_tokens]
        # CUDA kernels read it in vectors and do not look where a view begins: "misaligned address".
        return mask if mask.device.type == "cpu" else mask.clone()


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

    ``positions`` [tokens]; ``cos`` and ``signed_sin`` [tokens, 1, size]; ``mask`` [tokens * group, bucket]:
    added to the scores, minus infinity past a token's own position.
    """

    positions: Tensor
    cos: Tensor
    signed_sin: Tensor
    mask: Tensor


class Attention:
    """Norm, fused QKV, rotary positions, cached grouped-query attention, output, residual."""

    def __init__(self, layer: nn.Module, index: int, state: CacheState) -> None:
        attention: Any = layer.self_attn
        self.norm = Norm(layer.input_layernorm)  # type: ignore[arg-type]
        self.projections = (Dense.of(attention.q_proj, attention.k_proj, attention.v_proj), Dense.of(attention.o_proj))
        self._qkv: Projection = self.projections[0]
        self._output: Projection = self.projections[1]
        self.scale = float(getattr(attention, "scaling", state.head_size**-0.5))
        self.shape = (state.num_heads, state.num_kv_heads, state.head_size)
        self._index = index
        self._state = state

    def project(self, hidden: Tensor, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [tokens, heads, size], rotated keys and values [tokens, kv heads, size]."""
        state = self._state
        rotated = state.num_heads + state.num_kv_heads
        qkv = self._qkv(self.norm(hidden))
        qkv = qkv.view(hidden.shape[0], rotated + state.num_kv_heads, state.head_size)
        qk = qkv[:, :rotated]
        qk = qk * cos + qk.roll(state.head_size // 2, -1) * signed_sin
        return qk[:, : state.num_heads], qk[:, state.num_heads :], qkv[:, rotated:]

    def add(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Output projection of attended [tokens, heads * size], added to the residual."""
        return hidden + self._output(attended)

    def with_projections(self, into: Projection, out: Projection) -> Attention:
        other = copy(self)
        other._qkv, other._output = into, out
        return other

    def __call__(self, hidden: Tensor, start: int) -> Tensor:
        state, num_tokens = self._state, hidden.shape[0]
        end = start + num_tokens
        queries, keys, values = self.project(hidden, state.cos[start:end], state.signed_sin[start:end])
        cached_keys, cached_values = state.keys[self._index], state.values[self._index]
        cached_keys[:, start:end] = keys.transpose(0, 1)
        cached_values[:, start:end] = values.transpose(0, 1)
        attended = self.attend(queries, cached_keys[:, :end], cached_values[:, :end], start)
        return self.add(hidden, attended)

    def at(self, hidden: Tensor, place: CachePlace) -> Tensor:
        """The same with nothing read on the host: positions and mask are tensors."""
        state = self._state
        queries, keys, values = self.project(hidden, place.cos, place.signed_sin)
        cached_keys, cached_values = state.keys[self._index], state.values[self._index]
        cached_keys.index_copy_(1, place.positions, keys.transpose(0, 1))
        cached_values.index_copy_(1, place.positions, values.transpose(0, 1))
        bucket = place.mask.shape[1]
        return self.add(
            hidden, self._attend_grouped(queries, cached_keys[:, :bucket], cached_values[:, :bucket], place.mask)
        )

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """Attention of [tokens, heads, size] queries that follow ``start`` positions; [tokens, heads * size]."""
        state, num_tokens = self._state, queries.shape[0]
        if num_tokens > MAX_MASKED_TOKENS:
            return self._attend_prompt(queries, keys, values, start)
        mask = None if num_tokens == 1 else state.mask(start, num_tokens)
        return self._attend_grouped(queries, keys, values, mask)

    def _attend_grouped(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """The same under ``mask`` [tokens * group, keys], None for all keys."""
        state, num_tokens = self._state, queries.shape[0]
        # The queries of one KV head become rows of one matrix: no key is repeated.
        grouped = queries.view(num_tokens, state.num_kv_heads, state.group, state.head_size).transpose(0, 1)
        grouped = grouped.reshape(1, state.num_kv_heads, num_tokens * state.group, state.head_size)
        attended = attention(grouped, keys[None], values[None], mask, self.scale)
        # Some CUDA kernels return it in another memory order, which no view can regroup.
        attended = attended.reshape(state.num_kv_heads, num_tokens, state.group * state.head_size)
        return attended.transpose(0, 1).reshape(num_tokens, -1)

    def attend_masked(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of [tokens, heads, size] queries where ``mask`` [tokens, keys] is true; [tokens, heads * size]."""
        attended = attention(queries.transpose(0, 1)[None], keys[None], values[None], mask, self.scale)
        return attended[0].transpose(0, 1).reshape(queries.shape[0], -1)

    def _attend_prompt(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """The same for many tokens at once."""
        num_tokens = queries.shape[0]
        if start > 0:
            rows = torch.arange(start, start + num_tokens, device=queries.device)
            seen = torch.arange(keys.shape[1], device=queries.device)[None] <= rows[:, None]
            return self.attend_masked(queries, keys, values, seen)
        attended = attention(queries.transpose(0, 1)[None], keys[None], values[None], None, self.scale, is_causal=True)
        return attended[0].transpose(0, 1).reshape(num_tokens, -1)


class Mlp:
    """Norm, fused gate and up, SiLU, down, residual."""

    def __init__(self, layer: nn.Module) -> None:
        mlp: Any = layer.mlp
        self.norm = Norm(layer.post_attention_layernorm)  # type: ignore[arg-type]
        self.projections = (Dense.of(mlp.gate_proj, mlp.up_proj), Dense.of(mlp.down_proj))
        self._gate_up: Projection = self.projections[0]
        self._down: Projection = self.projections[1]
        self.width = self.projections[0].weight.shape[0] // 2

    def with_projections(self, into: Projection, out: Projection) -> Mlp:
        other = copy(self)
        other._gate_up, other._down = into, out
        return other

    def __call__(self, hidden: Tensor, start: int) -> Tensor:
        gate_up = self._gate_up(self.norm(hidden))
        gated = F.silu(gate_up[:, : self.width]).mul_(gate_up[:, self.width :])
        return hidden + self._down(gated)
