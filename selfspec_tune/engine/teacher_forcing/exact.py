"""Scoring a draft that shares the full model's cache: what self-speculative decoding really does.

There the verified prefix has *full-model* keys and values, and only the drafted tokens
have the draft's own. So each position attends to the full model's KV strictly before it,
and to its own draft KV at itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.engine.llama_layers import Attention
from selfspec_tune.engine.teacher_forcing.layerwise import LayerwiseScorer
from selfspec_tune.engine.teacher_forcing.trace import Window


class TokenExactScorer(LayerwiseScorer):
    """The token-exact pass over the windows' positions; their prefixes come from the full model."""

    def __init__(self, runner: FastRunner, windows: Sequence[Window]) -> None:
        self._prefixes = [_full_model_kv(runner, window) for window in windows]
        self._masks = [_token_exact_mask(window, runner) for window in windows]
        super().__init__(runner, windows, [(window.start, window.end) for window in windows])

    def _attend(
        self, attention: Attention, layer: int, number: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        prefix_keys, prefix_values = self._prefixes[number][layer]
        return attention.attend_masked(
            queries,
            torch.cat((prefix_keys, keys.transpose(0, 1)), 1),
            torch.cat((prefix_values, values.transpose(0, 1)), 1),
            self._masks[number],
        )


@torch.inference_mode()
def _full_model_kv(runner: FastRunner, window: Window) -> list[tuple[Tensor, Tensor]]:
    """Per layer, rotated keys and values [kv heads, end, size] of the full model."""
    runner.prefill(window.tokens[: window.end])
    return [runner.keys_and_values(layer) for layer in range(runner.num_layers)]


def _token_exact_mask(window: Window, runner: FastRunner) -> Tensor:
    """[positions, end + positions]: full-model KV strictly before, own KV at itself."""
    num = window.end - window.start
    rows = torch.arange(window.start, window.end)[:, None]
    before = torch.arange(window.end)[None] < rows
    return torch.cat((before, torch.eye(num, dtype=torch.bool)), 1).to(runner.device)
