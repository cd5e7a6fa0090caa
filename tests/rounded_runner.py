"""What the engines should compute: float64, rounded to the model's type where they round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.kernels.binding import INT4_GROUP
from selfspec_tune.engine.kernels.weights import rounded_inputs
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.models import LoadedModel

# The same of what is no sum: a float32 model's activations, as a share of the largest; exponentials, roots and
# divisions, as a share of the result.
_NARROWED, _FUNCTIONS = 2.0**-20, 2.0**-21
# Of an int4 weight's product with a group of inputs, which is a whole number: float32 rounds the inputs' step, the
# weight's value, the product with the step and with the group's and the row's scale, and the sum.
_SCALED = 6 * 2.0**-24


@dataclass(frozen=True)
class Rounding:
    """Where an engine rounds, beside the places where all do: linear layers, rotations, gates, residuals."""

    between_norm_and_weight: bool = True
    probabilities: bool = False  # of attention, before they weigh the values
    int4_inputs: bool = False  # to int8, in groups
    # How far a float32 sum strays from the exact one, as a share of the sum of its terms' magnitudes: several times
    # what is usual, whatever the number of terms, for errors grow with its root as these magnitudes do over the sum.
    stray: float = 2.0**-25


KERNELS = Rounding(int4_inputs=True)
# Torch's sums are not ours to bound: every row is in doubt, and how many are equal all the same tells where it rounds.
FAST = Rounding(between_norm_and_weight=False, probabilities=True, stray=2.0**-10)


@dataclass(frozen=True)
class Expected:
    """``logits`` [tokens, vocabulary] in float64. A row is ``in_doubt`` [tokens] where float32 may round otherwise.

    There some exact value, of the row's or of an earlier one's, lies within float32's own error of the middle between
    two numbers of the model's type. All other rows can come out in one way only.
    """

    logits: Tensor
    in_doubt: Tensor


class RoundedModel:
    """One pass of a Llama-shaped model in plain tensor arithmetic, over the keys and values that ``engine`` has cached.

    Nothing is carried from pass to pass, so that no difference grows. Drafts compute with the engine's own copies.
    """

    def __init__(self, loaded: LoadedModel, engine: FastRunner, rounding: Rounding = KERNELS) -> None:
        self._model, self._dtype = loaded.model, loaded.dtype
        self._layers: Any = loaded.sublayers.layers
        self._engine, self._rounding = engine, rounding
        self._in_doubt = torch.zeros(0, dtype=torch.bool)

    @property
    def is_float32(self) -> bool:
        """Whether nothing is rounded but what float32 itself rounds."""
        return self._dtype == torch.float32

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], draft: Draft | None = None) -> Expected:
        """The full model's pass over tokens that follow the engine's cache, or the draft's."""
        draft = draft or Draft(SkipSet.empty(len(self._layers)))
        self._in_doubt = torch.zeros(len(tokens), dtype=torch.bool)
        hidden = self._model.get_input_embeddings().weight[torch.tensor(tokens)].double()  # type: ignore[operator]
        for index, skip in enumerate(draft.skip_set.to_flags()):
            if not skip:
                layer = self._layers[index // 2]
                weights = self._weights(index, draft.precision.of(index))
                add = self._mlp if index % 2 else self._attention
                hidden = self._rounded(hidden + add(layer, index // 2, weights, hidden))
        decoder: Any = self._model.base_model
        head = self._weights(2 * len(self._layers), draft.precision.head)
        logits = self._linear(head, 0, self._norm(decoder.norm, hidden))[:, : draft.vocabulary]
        return Expected(logits, self._in_doubt.cummax(0).values)

    def _weights(self, index: int, precision: Precision) -> list[_Weight]:
        """Those of one sub-layer's two linear layers; past the last sub-layer the head's."""
        dense = self._engine._linear_layers(index)
        if precision is Precision.SAME:
            return [_Weight(each.weight.double(), each.bias) for each in dense]
        found = []
        for each, copied in zip(dense, self._engine._copies.get((index, precision)), strict=True):
            values = torch.empty(each.weight.shape)
            copied._dequantise(0, values)  # type: ignore[attr-defined]
            narrows = self._rounding.int4_inputs and precision is Precision.INT4
            found.append(_Weight(values.double(), each.bias, narrows))
        return found

    def _attention(self, layer: Any, number: int, weights: list[_Weight], hidden: Tensor) -> Tensor:
        attention = layer.self_attn
        cached_keys, cached_values = (part.double() for part in self._engine.keys_and_values(number))
        kv_heads, start, size = cached_keys.shape
        projected = self._linear(weights, 0, self._norm(layer.input_layernorm, hidden))
        heads = projected.unflatten(1, (-1, size)).transpose(0, 1)
        queries, keys, values = heads.split([heads.shape[0] - 2 * kv_heads, kv_heads, kv_heads])
        keys = torch.cat((cached_keys, self._rotated(keys, start)), 1)
        values = torch.cat((cached_values, values), 1)
        group, (num_tokens, seen) = queries.shape[0] // kv_heads, (queries.shape[1], keys.shape[1])
        queries = self._rotated(queries, start)
        keys, values = (each.repeat_interleave(group, 0) for each in (keys, values))
        later = torch.ones(num_tokens, seen, dtype=torch.bool).triu(seen - num_tokens + 1)
        scores = (queries @ keys.transpose(1, 2) * attention.scaling).masked_fill(later, -torch.inf)
        magnitude = attention.scaling * (queries.abs() @ keys.abs().transpose(1, 2))
        strayed = self._rounding.stray * magnitude.amax(-1, keepdim=True)
        shares = (scores - scores.amax(-1, keepdim=True)).exp()
        total = shares.sum(-1, keepdim=True)
        if self._rounding.probabilities:
            shares = self._rounded(shares, strayed * shares)
            strayed = torch.zeros_like(strayed)
        attended, magnitude = shares @ values / total, shares @ values.abs() / total
        doubt = (strayed + self._rounding.stray) * magnitude + _FUNCTIONS * attended.abs()
        attended = self._rounded(attended, doubt).transpose(0, 1).flatten(1)
        return self._linear(weights, 1, attended)

    def _rotated(self, heads: Tensor, start: int) -> Tensor:
        """Queries or keys [heads, tokens, size] turned to their positions."""
        decoder: Any = self._model.base_model
        positions = torch.arange(start, start + heads.shape[1])[None]
        cos, sin = (table[0].double() for table in decoder.rotary_emb(torch.empty(0, dtype=self._dtype), positions))
        first, second = heads.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
        return self._rounded(self._rounded(heads * cos) + self._rounded(turned * sin))

    def _mlp(self, layer: Any, number: int, weights: list[_Weight], hidden: Tensor) -> Tensor:
        gate, up = self._linear(weights, 0, self._norm(layer.post_attention_layernorm, hidden)).chunk(2, -1)
        gated = nn.functional.silu(gate)
        return self._linear(weights, 1, self._rounded(self._rounded(gated, _FUNCTIONS * gated.abs()) * up))

    def _norm(self, module: Any, hidden: Tensor) -> Tensor:
        normalised = hidden * (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
        if self._rounding.between_norm_and_weight:
            return self._rounded(self._rounded(normalised, _FUNCTIONS * normalised.abs()) * module.weight.double())
        weighted = normalised * module.weight.double()
        return self._rounded(weighted, _FUNCTIONS * weighted.abs())

    def _linear(self, weights: list[_Weight], which: int, hidden: Tensor) -> Tensor:
        weight = weights[which]
        if weight.narrows:
            hidden = self._in_steps(hidden)
        bias = torch.zeros(()) if weight.bias is None else weight.bias.double()
        doubt = self._rounding.stray * (hidden.abs() @ weight.values.abs().T + bias.abs())
        if weight.narrows:
            inputs, values = (each.unflatten(-1, (-1, INT4_GROUP)) for each in (hidden, weight.values))
            doubt += _SCALED * torch.einsum("tgi,ogi->tgo", inputs, values).abs().sum(1)
        return self._rounded(hidden @ weight.values.T + bias, doubt)

    def _rounded(self, values: Tensor, doubt: Tensor | float = 0.0) -> Tensor:
        """``values`` [..., tokens, size] in the model's type; float32 is taken for exact."""
        return values if self.is_float32 else self._noted(values, doubt, self._dtype)

    def _in_steps(self, hidden: Tensor) -> Tensor:
        """Inputs of an int4 copy. Some may be so near to the middle of a step, or at it, that either end is right.

        Half of a group's greatest number is at the middle, and whether it is rounded up depends on what is fused.
        """
        groups = hidden.unflatten(-1, (-1, INT4_GROUP))
        steps = 127 * groups / groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        doubt = 127 * _NARROWED
        is_open = ((steps - doubt).round() != (steps + doubt).round()).flatten(-2).any(-1)
        self._in_doubt |= is_open.reshape(-1, is_open.shape[-1]).any(0)
        return rounded_inputs(hidden.float()).double()

    def _noted(self, values: Tensor, doubt: Tensor | float, dtype: torch.dtype) -> Tensor:
        """The same in any type; tokens of which ``doubt`` leaves the choice of a number are noted."""
        is_open = ((values - doubt).to(dtype) != (values + doubt).to(dtype)).any(-1)
        self._in_doubt |= is_open.reshape(-1, is_open.shape[-1]).any(0)
        return values.to(dtype).double()


@dataclass(frozen=True)
class _Weight:
    values: Tensor  # float64 [outputs, inputs]
    bias: Tensor | None
    narrows: bool = False  # its inputs to int8


STEP = 2.0**-8  # between two bfloat16 numbers, as a share of the lower


def check_passes(
    engine: FastRunner,
    model: RoundedModel,
    prompt: Sequence[int],
    passes: Sequence[Sequence[int]],
    draft: Draft,
    *,
    most_open: float = 5 * STEP,
) -> float:
    """Hold passes of the model and of a draft, each of which follows the one before, to what they should compute.

    A row that float32 leaves no choice is equal to the bit; of a float32 model, up to the errors of its sums. Any other
    is off by ``most_open`` of its largest logit at most: a few steps, for one choice moves what comes after it
    by a part of a step, and seldom one more choice with it. Returns the share of rows that are equal.
    """
    engine.set_draft(draft)
    engine.reserve(len(prompt) + sum(map(len, passes)))
    prefill(engine, prompt)
    num_equal = num_rows = 0
    for tokens in passes:
        start = engine.length
        for drafting in (draft, None):
            engine.rewind(start)
            expected = model.forward(tokens, drafting)
            ours = engine.forward(tokens, is_draft=drafting is not None).logits.double()
            off = (ours - expected.logits).abs().amax(-1) / expected.logits.abs().amax(-1)
            is_equal = off <= (1e-5 if model.is_float32 else 0.0)
            assert bool((is_equal | expected.in_doubt).all()), off[~expected.in_doubt].max() / STEP
            assert float(off.max()) <= most_open
            num_equal, num_rows = num_equal + int(is_equal.sum()), num_rows + len(tokens)
    return num_equal / num_rows
