"""Scoring by the fast runner's own sub-layers, one after the other, over all windows at once.

Linear layers see the windows as one batch. Drafts that begin alike share their beginning:
hidden states after every few sub-layers are kept for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.engine.llama_layers import Attention
from selfspec_tune.engine.teacher_forcing.trace import Trace, Window, bounds, to_trace

_EVERY = 4  # sub-layers between hidden states that are kept
_KEPT_BYTES = 128 << 20

Sublayers = tuple[Precision | None, ...]


class LayerwiseScorer:
    """What the scorers on the fast runner share; they differ in what a position attends to."""

    approximation = ""

    @torch.inference_mode()
    def __init__(self, runner: FastRunner, windows: Sequence[Window], stretches: Sequence[tuple[int, int]]) -> None:
        """``stretches``: the first and the last but one position of each window's text that the draft computes."""
        self.windows = windows
        self._runner = runner
        tokens = [token for window, (a, b) in zip(windows, stretches, strict=True) for token in window.tokens[a:b]]
        self._embedded = runner.embed(tokens)
        rows = torch.cat([torch.arange(a, b) for a, b in stretches])
        self._rotation = runner.rotation(rows.to(self._embedded.device), max(window.end for window in windows))
        self._bounds = bounds([b - a for a, b in stretches])
        self._scored = torch.cat(
            [
                torch.arange(begin + window.start - a, begin + window.end - a)
                for window, (a, _), (begin, _) in zip(windows, stretches, self._bounds, strict=True)
            ]
        ).to(self._embedded.device)
        self._known = _HiddenStates(_KEPT_BYTES)

    @torch.inference_mode()
    def trace(self, draft: Draft) -> Trace:
        """What ``draft`` says along the windows; see `DraftScorer`."""
        self.prepare(draft)
        sublayers = draft.sublayers
        done, hidden = self._known.longest(sublayers)
        hidden = self._embedded if hidden is None else hidden
        for index in range(done, len(sublayers)):
            hidden = self.through(hidden, index, sublayers[index])
            if (index + 1) % _EVERY == 0:
                self._known.keep(sublayers[: index + 1], hidden)
        return to_trace(self.logits(hidden, draft), self.windows)

    def prepare(self, draft: Draft) -> None:
        """Make the low-precision copies that ``draft`` computes with; the runner's draft becomes this one."""
        if not draft.precision.is_same:
            self._runner.set_draft(draft)

    @property
    def embedded(self) -> Tensor:
        """Hidden states [positions, width] before the first sub-layer."""
        return self._embedded

    @torch.inference_mode()
    def through(self, hidden: Tensor, index: int, precision: Precision | None) -> Tensor:
        """Hidden states after sub-layer ``index`` at ``precision``; None: it is skipped."""
        if precision is None:
            return hidden
        layer, is_mlp = divmod(index, 2)
        if is_mlp:
            return self._runner.mlp(layer, precision)(hidden, 0)
        attention = self._runner.attention(layer, precision)
        queries, keys, values = attention.project(hidden, *self._rotation)
        attended = [
            self._attend(attention, layer, number, queries[a:b], keys[a:b], values[a:b])
            for number, (a, b) in enumerate(self._bounds)
        ]
        return attention.add(hidden, torch.cat(attended))

    @torch.inference_mode()
    def logits(self, hidden: Tensor, draft: Draft) -> Tensor:
        """Logits [scored positions, draft vocabulary] of hidden states after the last sub-layer."""
        return self._runner.head(hidden[self._scored], draft.vocabulary, draft.precision.head)

    def _attend(
        self, attention: Attention, layer: int, number: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Attention of window ``number``'s positions [positions, heads, size]; [positions, heads * size]."""
        raise NotImplementedError


class _HiddenStates:
    """Hidden states by the sub-layers that led to them; the least recently used are forgotten."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[Sublayers, Tensor] = OrderedDict()
        self._bytes = 0

    def longest(self, sublayers: Sublayers) -> tuple[int, Tensor | None]:
        """How many of ``sublayers``, from the first, are known, and the hidden state after them."""
        for depth in range(len(sublayers) // _EVERY * _EVERY, 0, -_EVERY):
            hidden = self._held.get(sublayers[:depth])
            if hidden is not None:
                self._held.move_to_end(sublayers[:depth])
                return depth, hidden
        return 0, None

    def keep(self, sublayers: Sublayers, hidden: Tensor) -> None:
        """Remember ``hidden``; older states make room."""
        self._held[sublayers] = hidden
        self._bytes += _size(hidden)
        while self._bytes > self._most_bytes and len(self._held) > 1:
            self._bytes -= _size(self._held.popitem(last=False)[1])


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
