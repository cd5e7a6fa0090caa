"""Scoring a draft that shares the full model's cache: what self-speculative decoding really does.

There the verified prefix has *full-model* keys and values, and only the drafted tokens
have the draft's own. So a position that a draft begins at attends to the full model's KV strictly before it,
and to its own draft KV at itself. The draft's next token comes from the position after, which attends to the
draft's KV at the position before too, as that computed it at the beginning of a draft; and so on.
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
    """The token-exact pass over the windows' positions; their prefixes come from the full model.

    Every position is computed ``depths`` times: as the first of a draft, as the second, and so on. What further
    tokens attend to is taken to be what the last of these does: exact for drafts of up to ``depths`` tokens.
    """

    def __init__(self, runner: FastRunner, windows: Sequence[Window], depths: int = 1) -> None:
        self._prefixes = [_full_model_kv(runner, window) for window in windows]
        self._masks = [_token_exact_mask(window, depths).to(runner.device) for window in windows]
        super().__init__(runner, windows, [list(range(window.start, window.end)) * depths for window in windows])

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


def _token_exact_mask(window: Window, depths: int) -> Tensor:
    """[depths * positions, end + depths * positions]: what each position may attend to, at each depth.

    At depth d that is the full model's KV before the d positions before it; at these what the draft computed at
    depths 0 to d - 1, in this order; and its own. What lies before the window is the full model's throughout.
    """
    num = window.end - window.start
    rows = torch.arange(window.start, window.end)[:, None]
    columns = torch.arange(window.end)[None]
    masks = torch.zeros(depths, num, window.end + depths * num, dtype=torch.bool)
    for depth in range(depths):
        masks[depth, :, : window.end] = columns < (rows - depth).clamp(min=window.start)
        for own in range(depth + 1):
            positions = torch.arange(min(depth - own, num), num)
            masks[depth, positions, window.end + own * num + positions - (depth - own)] = True
    return masks.flatten(0, 1)
