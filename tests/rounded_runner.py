"""What the native kernels should compute: float64, rounded to the model's type where the kernels round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.runner import Scores, prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.models import LoadedModel


class RoundedRunner:
    """The passes of a Llama-shaped model in plain tensor arithmetic, after a prefill by the fast runner.

    A sum over inputs or positions is taken in float64 and rounded once; softmax is not rounded. Logits are float64.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._prefilling, self._model, self._dtype = FastRunner(loaded), loaded.model, loaded.dtype
        self._layers: Any = loaded.sublayers.layers
        self._everything = self._drafting = SkipSet.empty(loaded.num_layers)
        self._cached: list[tuple[Tensor, Tensor]] = []  # keys and values of each layer, [kv heads, length, size]
        self.length = 0

    def reserve(self, capacity: int) -> None:
        self._prefilling.reserve(capacity)

    def set_draft(self, draft: Draft) -> None:
        self._drafting = draft.skip_set

    def forward(self, tokens: Sequence[int], *, is_draft: bool = False, last_only: bool = False) -> Scores:
        if not last_only:
            return Scores(logits=self._run(tokens, self._drafting if is_draft else self._everything))
        logits = prefill(self._prefilling, tokens)
        layers = range(self._prefilling.num_layers)
        self._cached = [(k.double(), v.double()) for k, v in map(self._prefilling.keys_and_values, layers)]
        self.length = len(tokens)
        return Scores(logits=logits.double()[None])

    def rewind(self, length: int) -> None:
        self._cached = [(keys[:, :length], values[:, :length]) for keys, values in self._cached]
        self.length = length

    @torch.inference_mode()
    def _run(self, tokens: Sequence[int], skip_set: SkipSet) -> Tensor:
        """Logits [tokens, vocabulary] of tokens that follow the cache."""
        hidden = self._model.get_input_embeddings().weight[torch.tensor(tokens)].double()  # type: ignore[operator]
        for index, layer in enumerate(self._layers):
            if index not in skip_set.attention:
                attended = self._attend(layer.self_attn, index, self._norm(layer.input_layernorm, hidden))
                hidden = self._rounded(hidden + attended)
            if index not in skip_set.mlp:
                gated = self._gate(layer.mlp, self._norm(layer.post_attention_layernorm, hidden))
                hidden = self._rounded(hidden + gated)
        self.length += len(tokens)
        decoder: Any = self._model.base_model
        return self._linear(self._model.get_output_embeddings(), self._norm(decoder.norm, hidden))  # type: ignore[operator]

    def _attend(self, attention: Any, index: int, hidden: Tensor) -> Tensor:
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        heads = (self._linear(layer, hidden).unflatten(1, (-1, attention.head_dim)) for layer in projections)
        queries, keys, values = (head.transpose(0, 1) for head in heads)
        cached_keys, cached_values = self._cached[index]
        keys = torch.cat((cached_keys, self._rotated(keys)), 1)
        values = torch.cat((cached_values, values), 1)
        self._cached[index] = keys, values
        group, (num_tokens, seen) = queries.shape[0] // keys.shape[0], (queries.shape[1], keys.shape[1])
        keys, values = (each.repeat_interleave(group, 0) for each in (keys, values))
        scores = self._rotated(queries) @ keys.transpose(1, 2) * attention.scaling
        later = torch.ones(num_tokens, seen, dtype=torch.bool).triu(seen - num_tokens + 1)
        attended = self._rounded(scores.masked_fill(later, -torch.inf).softmax(-1) @ values)
        return self._linear(attention.o_proj, attended.transpose(0, 1).flatten(1))

    def _rotated(self, heads: Tensor) -> Tensor:
        """Queries or keys [heads, tokens, size] turned to their positions."""
        decoder: Any = self._model.base_model
        positions = torch.arange(self.length, self.length + heads.shape[1])[None]
        cos, sin = (table[0].double() for table in decoder.rotary_emb(torch.empty(0, dtype=self._dtype), positions))
        first, second = heads.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
        return self._rounded(self._rounded(heads * cos) + self._rounded(turned * sin))

    def _gate(self, mlp: Any, hidden: Tensor) -> Tensor:
        gate, up = self._linear(mlp.gate_proj, hidden), self._linear(mlp.up_proj, hidden)
        return self._linear(mlp.down_proj, self._rounded(self._rounded(nn.functional.silu(gate)) * up))

    def _norm(self, module: Any, hidden: Tensor) -> Tensor:
        normalised = hidden * (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
        return self._rounded(self._rounded(normalised) * module.weight.double())

    def _linear(self, module: Any, hidden: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias.double()
        return self._rounded(nn.functional.linear(hidden, module.weight.double(), bias))

    def _rounded(self, values: Tensor) -> Tensor:
        return values.to(self._dtype).double()
