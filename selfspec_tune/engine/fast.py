"""The fast runner: our own loop over the model's own weights.

Preallocated KV cache, rewinding by moving a length, no mask built per step, fused QKV and
gate/up projections; a skipped sub-layer costs nothing, its norm included. Serves
pre-norm decoders of the Llama shape (llama, qwen2, mistral): RMSNorm, rotary positions,
grouped-query attention, gated MLP with SiLU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfspec_tune.draft import Draft
from selfspec_tune.engine.fused import fuse
from selfspec_tune.engine.runner import check_room, check_same_precision
from selfspec_tune.models import LoadedModel
from selfspec_tune.skip_set import SkipSet

_MAX_MASKED_TOKENS = 33  # one verification: the last token and up to 32 drafts
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}
_LAYER_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION_CHILDREN = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_CHILDREN = {"gate_proj", "up_proj", "down_proj", "act_fn"}

SubLayer = Callable[[Tensor, int], Tensor]


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
        head = model.get_output_embeddings()
        self._head, self._head_bias = head.weight.data, head.bias
        self._norm = _Norm(model.base_model.norm)
        self.num_layers = loaded.num_layers
        self.vocabulary_size = int(self._head.shape[0])
        self._state = _State(loaded, model.config)
        self._sublayers: list[SubLayer] = []
        for index, layer in enumerate(loaded.sublayers.layers):
            self._sublayers.append(Attention(layer, index, self._state))
            self._sublayers.append(_Mlp(layer))
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
            self._state.allocate(min(-(-capacity // 256) * 256, self._loaded.context_length))

    def set_draft(self, draft: Draft) -> None:
        check_same_precision(draft, self.name)
        flags = draft.skip_set.to_flags()
        self._draft_sublayers = [s for s, skip in zip(self._sublayers, flags, strict=True) if not skip]
        self._draft_vocabulary = draft.vocabulary

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
        return self.head(hidden, self._draft_vocabulary)[0]

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

    def attention(self, layer: int) -> Attention:
        """One layer's attention sub-layer."""
        sublayer = self._sublayers[2 * layer]
        assert isinstance(sublayer, Attention)
        return sublayer

    def mlp(self, layer: int) -> SubLayer:
        """One layer's MLP sub-layer."""
        return self._sublayers[2 * layer + 1]

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """Embeddings [tokens, width]."""
        return self._embedding[torch.tensor(tokens, device=self._embedding.device)]

    def head(self, hidden: Tensor, vocabulary: int | None = None) -> Tensor:
        """Logits [tokens, vocabulary] of hidden [tokens, width], of the first ``vocabulary`` tokens only."""
        bias = None if self._head_bias is None else self._head_bias[:vocabulary]
        return F.linear(self._norm(hidden), self._head[:vocabulary], bias)

    def rotation(self, positions: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Rotary cosines and signed sines at ``positions``, all below ``capacity``."""
        self.reserve(capacity)
        return self._state.cos[positions], self._state.signed_sin[positions]

    def _run(self, hidden: Tensor, sublayers: Sequence[SubLayer]) -> Tensor:
        """Pass hidden [tokens, width] through ``sublayers``, at the positions that follow the cache."""
        start = self._length
        for sublayer in sublayers:
            hidden = sublayer(hidden, start)
        self._length = start + hidden.shape[0]
        return hidden


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
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        positions = torch.arange(capacity, device=device)[None]
        probe = torch.empty(1, 1, device=device, dtype=dtype)
        decoder: Any = self._loaded.model.base_model
        cos, sin = decoder.rotary_emb(probe, positions)
        half = self.head_size // 2
        # rotate_half(x) * sin == roll(x) * sin with the first half of sin negated
        self.cos = cos[0].unsqueeze(1).contiguous()
        self.signed_sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).unsqueeze(1).contiguous()
        self._band = self._make_band(capacity)
        self.capacity = capacity

    def _make_band(self, capacity: int) -> Tensor:
        """[tokens * group, 2 * capacity]: row t (each ``group`` times) sees columns up to capacity + t."""
        columns = torch.arange(2 * capacity, device=self._loaded.device)
        rows = torch.arange(_MAX_MASKED_TOKENS, device=self._loaded.device) + capacity
        band = torch.zeros(_MAX_MASKED_TOKENS, 2 * capacity, dtype=self._loaded.dtype, device=columns.device)
        band.masked_fill_(columns[None] > rows[:, None], -torch.inf)
        return band.repeat_interleave(self.group, 0)

    def mask(self, start: int, num_tokens: int) -> Tensor:
        """Causal mask [tokens * group, start + tokens] for tokens that follow ``start`` positions: a view."""
        offset = self.capacity - start
        return self._band[: num_tokens * self.group, offset : offset + start + num_tokens]


class Attention:
    """Norm, fused QKV, rotary positions, cached grouped-query attention, output, residual."""

    def __init__(self, layer: nn.Module, index: int, state: _State) -> None:
        attention: Any = layer.self_attn
        self._norm = _Norm(layer.input_layernorm)  # type: ignore[arg-type]
        self._qkv, self._qkv_bias = fuse((attention.q_proj, attention.k_proj, attention.v_proj))
        self._output: nn.Linear = attention.o_proj
        self._scale = float(getattr(attention, "scaling", state.head_size**-0.5))
        self._index = index
        self._state = state

    def project(self, hidden: Tensor, cos: Tensor, signed_sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [tokens, heads, size], rotated keys and values [tokens, kv heads, size]."""
        state = self._state
        rotated = state.num_heads + state.num_kv_heads
        qkv = F.linear(self._norm(hidden), self._qkv, self._qkv_bias)
        qkv = qkv.view(hidden.shape[0], rotated + state.num_kv_heads, state.head_size)
        qk = qkv[:, :rotated]
        qk = qk * cos + qk.roll(state.head_size // 2, -1) * signed_sin
        return qk[:, : state.num_heads], qk[:, state.num_heads :], qkv[:, rotated:]

    def add(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """Output projection of attended [tokens, heads * size], added to the residual."""
        return hidden + F.linear(attended, self._output.weight, self._output.bias)

    def __call__(self, hidden: Tensor, start: int) -> Tensor:
        state, num_tokens = self._state, hidden.shape[0]
        end = start + num_tokens
        queries, keys, values = self.project(hidden, state.cos[start:end], state.signed_sin[start:end])
        cached_keys, cached_values = state.keys[self._index], state.values[self._index]
        cached_keys[:, start:end] = keys.transpose(0, 1)
        cached_values[:, start:end] = values.transpose(0, 1)
        attended = self.attend(queries, cached_keys[:, :end], cached_values[:, :end], start)
        return self.add(hidden, attended)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """Attention of [tokens, heads, size] queries that follow ``start`` positions; [tokens, heads * size]."""
        state, num_tokens = self._state, queries.shape[0]
        if num_tokens > _MAX_MASKED_TOKENS:
            return self._attend_prompt(queries, keys, values, start)
        # The queries of one KV head become rows of one matrix: no key is repeated.
        grouped = queries.view(num_tokens, state.num_kv_heads, state.group, state.head_size).transpose(0, 1)
        grouped = grouped.reshape(1, state.num_kv_heads, num_tokens * state.group, state.head_size)
        mask = None if num_tokens == 1 else state.mask(start, num_tokens)
        attended = F.scaled_dot_product_attention(grouped, keys[None], values[None], attn_mask=mask, scale=self._scale)
        attended = attended.view(state.num_kv_heads, num_tokens, state.group * state.head_size)
        return attended.transpose(0, 1).reshape(num_tokens, -1)

    def attend_masked(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of [tokens, heads, size] queries where ``mask`` [tokens, keys] is true; [tokens, heads * size]."""
        attended = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=mask,
            scale=self._scale,
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
            scale=self._scale,
            enable_gqa=True,
        )
        return attended[0].transpose(0, 1).reshape(num_tokens, -1)


class _Mlp:
    """Norm, fused gate and up, SiLU, down, residual."""

    def __init__(self, layer: nn.Module) -> None:
        mlp: Any = layer.mlp
        self._norm = _Norm(layer.post_attention_layernorm)  # type: ignore[arg-type]
        self._gate_up, self._gate_up_bias = fuse((mlp.gate_proj, mlp.up_proj))
        self._down: nn.Linear = mlp.down_proj
        self._width = self._gate_up.shape[0] // 2

    def __call__(self, hidden: Tensor, start: int) -> Tensor:
        gate_up = F.linear(self._norm(hidden), self._gate_up, self._gate_up_bias)
        gated = F.silu(gate_up[:, : self._width]).mul_(gate_up[:, self._width :])
        return hidden + F.linear(gated, self._down.weight, self._down.bias)
