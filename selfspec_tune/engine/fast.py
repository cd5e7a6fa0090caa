"""The fast runner: our own loop over the model's own weights.

Preallocated KV cache, rewinding by moving a length, no mask built per step, fused QKV and
gate/up projections; a skipped sub-layer costs nothing, its norm included. Serves
pre-norm decoders of the Llama shape (llama, qwen2, mistral): RMSNorm, rotary positions,
grouped-query attention, gated MLP with SiLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.engine.draft_copies import DraftCopies, Key
from selfspec_tune.engine.lowbit import LowBitSettings, refusal
from selfspec_tune.engine.projection import Dense, Projection
from selfspec_tune.engine.runner import check_cache, check_room
from selfspec_tune.errors import UsageError
from selfspec_tune.models import LoadedModel
from selfspec_tune.skip_set import SkipSet

MAX_MASKED_TOKENS = 33  # one verification: the last token and up to 32 drafts
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_LAYER_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_CHILDREN = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_CHILDREN = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class SubLayer(Protocol):
    """An attention or an MLP with its norm and residual."""

    projections: tuple[Dense, Dense]

    def __call__(self, hidden: Tensor, start: int) -> Tensor:
        """Pass hidden [tokens, width] on, its tokens following ``start`` positions of the cache."""

    def with_projections(self, into: Projection, out: Projection) -> Self:
        """The same sub-layer, cache and norm shared, computing with other linear layers."""


def unsupported_reason(loaded: LoadedModel) -> str | None:
    """Why the fast runner cannot serve this model, or None where its structure fits."""
    config, decoder = loaded.model.config, loaded.model.base_model
    layer_types = set(getattr(config, "layer_types", None) or {"full_attention"})
    if layer_types != {"full_attention"} or getattr(config, "sliding_window", None):
        return "it has sliding-window or linear attention"
    if not all(hasattr(decoder, name) for name in ("embed_tokens", "norm", "rotary_emb")):
        return "its decoder has no embed_tokens, norm and rotary_emb"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in _STATIC_ROPE:
        return f"its rotary positions ({rope['rope_type']}) depend on the length"
    for index, layer in enumerate(loaded.sublayers.layers):
        if (reason := _unlike_llama(layer)) is not None:
            return f"layer {index} {reason}"
    return None


def _unlike_llama(layer: nn.Module) -> str | None:
    children = dict(layer.named_children())
    if set(children) != _LAYER_CHILDREN:
        return f"has the parts {sorted(children)}"
    if {name for name, _ in children["self_attn"].named_children()} != _ATTENTION_CHILDREN:
        return "has an attention that is not q, k, v and o projections alone"
    mlp = dict(children["mlp"].named_children())
    if set(mlp) != _MLP_CHILDREN or "silu" not in type(mlp["act_fn"]).__name__.lower():
        return "has an MLP that is not gate, up and down projections with SiLU"
    stacks = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
    for owner, names in zip((layer.self_attn, layer.mlp), stacks, strict=True):
        if len({getattr(owner, name).bias is None for name in names}) > 1:
            return f"has biases on some of {', '.join(names)} only"
    return None


class FastRunner:
    """Runs one sequence through a Llama-shaped model; see `Runner` for the meaning of each call."""

    name = "fast"

    @torch.inference_mode()
    def __init__(self, loaded: LoadedModel) -> None:
        model: Any = loaded.model
        self._loaded = loaded
        self._embedding: Tensor = model.get_input_embeddings().weight.data
        self._head = Dense.of(model.get_output_embeddings())
        self._norm = _Norm(model.base_model.norm)
        self.num_layers = loaded.num_layers
        self.vocabulary_size = int(self._head.weight.shape[0])
        self._state = _State(loaded, model.config)
        self._sublayers: list[Attention | Mlp] = []
        for index, layer in enumerate(loaded.sublayers.layers):
            self._sublayers.append(Attention(layer, index, self._state))
            self._sublayers.append(Mlp(layer))
        self._copies = self._new_copies()
        self._length = 0
        self.set_draft(Draft(SkipSet.empty(self.num_layers)))

    @property
    def length(self) -> int:
        return self._length

    @property
    def capacity(self) -> int:
        return self._state.capacity

    @torch.inference_mode()
    def reserve(self, capacity: int) -> None:
        if capacity > self._state.capacity:
            check_room(capacity, self._loaded.context_length)
            self._length = 0
            self._state.allocate(min(self._rounded(capacity), self._loaded.context_length))

    def set_draft(self, draft: Draft) -> None:
        """Raises `UsageError` where its copies exceed `extra_memory_bytes`, and
        `UnsupportedPrecisionError` where torch cannot compute with them."""
        keys = self._copies_of(draft)
        self._forget(self._copies.make_room(keys))  # first: making a copy may fail
        self._copies.require(keys)
        kept = (index for index, skip in enumerate(draft.skip_set.to_flags()) if not skip)
        self._draft_sublayers = [self._sublayer(index, draft.precision.of(index)) for index in kept]
        self._draft_head = self._head_at(draft.precision.head, draft.vocabulary)

    @property
    def extra_memory_bytes(self) -> int | None:
        """Most bytes of low-precision copies that drafts may hold; None: no limit."""
        return self._copies.limit

    @extra_memory_bytes.setter
    def extra_memory_bytes(self, limit: int | None) -> None:
        self._copies.limit = limit

    @property
    def draft_copy_bytes(self) -> int:
        """Bytes of low-precision copies held now."""
        return self._copies.num_bytes

    def copy_bytes(self, draft: Draft) -> int:
        """Bytes of low-precision copies that ``draft`` needs."""
        return sum(self._copies.bytes_of(key) for key in self._copies_of(draft))

    def precision_refusal(self, precision: Precision) -> str | None:
        """Why sub-layers of this model cannot be drafted at ``precision`` here, None where they can."""
        if precision is Precision.SAME:
            return None
        dtype, device = self._loaded.dtype, self._loaded.device
        widths = {int(dense.weight.shape[1]) for index in (0, 1) for dense in self._sublayers[index].projections}
        reasons = (refusal(precision, device, dtype, width, self._copies.settings) for width in sorted(widths))
        return next((reason for reason in reasons if reason is not None), None)

    def configure_copies(self, settings: LowBitSettings) -> None:
        """Make int4 copies in another way; all are dropped, so that `set_draft` must follow."""
        self._forget(self._copies.configure(settings))
        self.set_draft(Draft(SkipSet.empty(self.num_layers)))

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int]) -> Tensor:
        self._length = 0
        self.reserve(len(tokens))
        hidden = self._run(self.embed(tokens), self._sublayers)
        return self.head(hidden[-1])

    @torch.inference_mode()
    def decode(self, token: int) -> Tensor:
        hidden = self._run(self._embedding[token : token + 1], self._sublayers)
        return self.head(hidden)[0]

    @torch.inference_mode()
    def draft_step(self, token: int) -> Tensor:
        hidden = self._run(self._embedding[token : token + 1], self._draft_sublayers)
        return self._draft_head(self._norm(hidden))[0]

    @torch.inference_mode()
    def verify(self, tokens: Sequence[int]) -> Tensor:
        return self.head(self._run(self.embed(tokens), self._sublayers))

    def rewind(self, length: int) -> None:
        self._length = min(length, self._length)

    def synchronize(self) -> None:
        if self._loaded.device.type == "cuda":
            torch.cuda.synchronize(self._loaded.device)

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """Copies of one layer's cached keys and values, [kv heads, length, head size] each, keys rotated."""
        state = self._state
        return state.keys[layer, :, : self._length].clone(), state.values[layer, :, : self._length].clone()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._loaded.device

    def attention(self, layer: int, precision: Precision = Precision.SAME) -> Attention:
        """One layer's attention sub-layer; at a low precision only after `set_draft` with such a draft."""
        sublayer = self._sublayer(2 * layer, precision)
        assert isinstance(sublayer, Attention)
        return sublayer

    def mlp(self, layer: int, precision: Precision = Precision.SAME) -> SubLayer:
        """One layer's MLP sub-layer; at a low precision only after `set_draft` with such a draft."""
        return self._sublayer(2 * layer + 1, precision)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Embeddings [tokens, width]."""
        return self._embedding[torch.tensor(tokens, device=self._embedding.device)]

    def head(self, hidden: Tensor, vocabulary: int | None = None, precision: Precision = Precision.SAME) -> Tensor:
        """Logits [tokens, vocabulary] of hidden [tokens, width], of the first ``vocabulary`` tokens only."""
        return self._head_at(precision, vocabulary)(self._norm(hidden))

    def rotation(self, positions: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Rotary cosines and signed sines at ``positions``, all below ``capacity``."""
        self.reserve(capacity)
        return self._state.cos[positions], self._state.signed_sin[positions]

    def _run(self, hidden: Tensor, sublayers: Sequence[SubLayer]) -> Tensor:
        """Pass hidden [tokens, width] through ``sublayers``, at the positions that follow the cache."""
        start, end = self._length, self._length + hidden.shape[0]
        check_cache(end, self._state.capacity)
        for sublayer in sublayers:
            hidden = sublayer(hidden, start)
        self._length = end
        return hidden

    def _rounded(self, capacity: int) -> int:
        """How many positions to allocate where ``capacity`` are asked for."""
        return -(-capacity // 256) * 256

    def _new_copies(self) -> DraftCopies:
        """An empty store of low-precision copies in the form that this runner's kernels read."""
        return DraftCopies(self._linear_layers)

    def _linear_layers(self, index: int) -> tuple[Dense, ...]:
        """The linear layers of sub-layer ``index``; of the head past the last."""
        return (self._head,) if index == len(self._sublayers) else self._sublayers[index].projections

    def _copies_of(self, draft: Draft) -> list[Key]:
        """The low-precision copies that ``draft`` computes with: none for what it skips."""
        flags = enumerate(draft.skip_set.to_flags())
        keys = [(index, draft.precision.of(index)) for index, skip in flags if not skip]
        keys.append((len(self._sublayers), draft.precision.head))
        return [(index, precision) for index, precision in keys if precision is not Precision.SAME]

    def _sublayer(self, index: int, precision: Precision) -> SubLayer:
        sublayer = self._sublayers[index]
        if precision is Precision.SAME:
            return sublayer
        into, out = self._copies.get((index, precision))
        return sublayer.with_projections(into, out)

    def _head_at(self, precision: Precision, vocabulary: int | None) -> Projection:
        if precision is Precision.SAME:
            return self._head.narrow(vocabulary)
        return self._copies.get((len(self._sublayers), precision))[0].narrow(vocabulary)

    def _forget(self, dropped: set[Key]) -> None:
        """Called with the copies that are no longer held."""


class _Norm:
    """RMSNorm with the module's weight."""

    def __init__(self, module: nn.Module) -> None:
        self.weight: Tensor = module.weight.data  # type: ignore[assignment]
        self.epsilon = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
        self.shape = tuple(self.weight.shape)

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.shape, self.weight, self.epsilon)


class _State:
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

    def _make_band(self, capacity: int) -> Tensor:
        """[tokens * group, 2 * capacity]: row t (each ``group`` times) sees columns up to capacity + t."""
        columns = torch.arange(2 * capacity, device=self._loaded.device)
        rows = torch.arange(MAX_MASKED_TOKENS, device=self._loaded.device) + capacity
        band = torch.zeros(MAX_MASKED_TOKENS, 2 * capacity, dtype=self._loaded.dtype, device=columns.device)
        band.masked_fill_(columns[None] > rows[:, None], -torch.inf)
        return band.repeat_interleave(self.group, 0)

    def place(self, positions: Tensor, bucket: int) -> Place:
        """Rotation and mask of tokens at ``positions`` [tokens] over the first ``bucket`` positions of the cache."""
        rows = positions[:, None].expand(-1, self.group).reshape(-1, 1)
        mask = torch.where(self._columns[:bucket] <= rows, self._open, self._closed)
        return Place(positions, self.cos.index_select(0, positions), self.signed_sin.index_select(0, positions), mask)

    def mask(self, start: int, num_tokens: int) -> Tensor:
        """Causal mask [tokens * group, start + tokens] for tokens that follow ``start`` positions: a view."""
        offset = self.capacity - start
        return self._band[: num_tokens * self.group, offset : offset + start + num_tokens]


def _room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        return torch.zeros(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError on a GPU, its parent on a CPU
        raise UsageError(
            f"No memory for a cache of {shape[2]} positions on {device}. Use shorter prompts, a smaller "
            f"--max-new-tokens or --extra-memory, or a smaller model. ({str(error).splitlines()[0]})"
        ) from error


@dataclass(frozen=True, slots=True)
class Place:
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

    def __init__(self, layer: nn.Module, index: int, state: _State) -> None:
        attention: Any = layer.self_attn
        self.norm = _Norm(layer.input_layernorm)  # type: ignore[arg-type]
        self.projections = (Dense.of(attention.q_proj, attention.k_proj, attention.v_proj), Dense.of(attention.o_proj))
        self._qkv: Projection = self.projections[0]
        self._output: Projection = self.projections[1]
        self.scale = float(getattr(attention, "scaling", state.head_size**-0.5))
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

    def at(self, hidden: Tensor, place: Place) -> Tensor:
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
        attended = F.scaled_dot_product_attention(grouped, keys[None], values[None], attn_mask=mask, scale=self.scale)
        attended = attended.view(state.num_kv_heads, num_tokens, state.group * state.head_size)
        return attended.transpose(0, 1).reshape(num_tokens, -1)

    def attend_masked(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of [tokens, heads, size] queries where ``mask`` [tokens, keys] is true; [tokens, heads * size]."""
        attended = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=True,
        )
        return attended[0].transpose(0, 1).reshape(queries.shape[0], -1)

    def _attend_prompt(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """The same for many tokens at once."""
        num_tokens = queries.shape[0]
        if start > 0:
            rows = torch.arange(start, start + num_tokens, device=queries.device)
            seen = torch.arange(keys.shape[1], device=queries.device)[None] <= rows[:, None]
            return self.attend_masked(queries, keys, values, seen)
        attended = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None],
            values[None],
            is_causal=True,
            scale=self.scale,
            enable_gqa=True,
        )
        return attended[0].transpose(0, 1).reshape(num_tokens, -1)


class Mlp:
    """Norm, fused gate and up, SiLU, down, residual."""

    def __init__(self, layer: nn.Module) -> None:
        mlp: Any = layer.mlp
        self.norm = _Norm(layer.post_attention_layernorm)  # type: ignore[arg-type]
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
