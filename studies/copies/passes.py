"""One sub-layer at a time: the target over whole texts, drafts beside it, and what linear layers are fed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from formats import GROUP
from torch import Tensor

from selfspec_tune.draft import Precision
from selfspec_tune.engine.layers.attention import Attention
from selfspec_tune.engine.layers.linear import Dense
from selfspec_tune.engine.layers.sublayer import SubLayer
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.teacher_forcing import StandaloneScorer, TokenExactScorer, Window
from selfspec_tune.engine.teacher_forcing.layerwise import LayerwiseScorer, _Sight

WIDE = 2048  # inputs of a block, at most
_SINKS = 8  # first tokens of a text, which the product leaves out too


def block_of(inputs: int, most: int) -> int:
    """The greatest number of inputs up to ``most`` that divides them into whole groups."""
    return next(size for size in range(min(inputs, most) // GROUP * GROUP, 0, -GROUP) if inputs % size == 0)


class TargetPass(StandaloneScorer):
    """The full model over whole texts; of the layer that it passed last it has the keys and values."""

    def __init__(self, runner: FastRunner, windows: Sequence[Window]) -> None:
        super().__init__(runner, windows)
        self.prefixes: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in windows]
        self.own = self._scored[0]

    def _attend(
        self, attention: Attention, layer: int, number: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        self.prefixes[number] = {layer: (keys.transpose(0, 1), values.transpose(0, 1))}
        return super()._attend(attention, layer, number, queries, keys, values)


class DraftPass(TokenExactScorer):
    """A draft at every position of the windows, attending to what a `TargetPass` left of the same layer."""

    def __init__(self, runner: FastRunner, windows: Sequence[Window], target: TargetPass) -> None:
        LayerwiseScorer.__init__(self, runner, windows, [range(window.start, window.end) for window in windows])
        self._prefixes = target.prefixes  # type: ignore[assignment]  # of one layer at a time
        rows = [self._positions[begin:end] for begin, end in self._bounds]
        self._sights = [_Sight(window, 1, own) for window, own in zip(windows, rows, strict=True)]


class CalibrationPass(StandaloneScorer):
    """The full model over ``texts``; notes what a sub-layer's linear layers are fed, by kind of text.

    ``block``: most inputs whose products with each other are noted.
    """

    def __init__(self, runner: FastRunner, texts: Sequence[tuple[str, Sequence[int]]], block: int) -> None:
        windows = [Window((*tokens, 0), 0, len(tokens)) for _, tokens in texts]
        super().__init__(runner, windows)
        self._fast, self._block = runner, block
        self._runner: Any = self  # whose sub-layers are metered
        self.kinds = [kind for kind, _ in texts]
        self.products: dict[int, dict[str, Tensor]] = {}
        self.counts: dict[str, int] = {}
        for kind, tokens in texts:
            self.counts[kind] = self.counts.get(kind, 0) + max(len(tokens) - _SINKS, 0)

    def attention(self, layer: int, precision: Precision) -> SubLayer:
        """With meters."""
        return self._metered(self._fast.attention(layer, precision))

    def mlp(self, layer: int, precision: Precision, experts: int | None) -> SubLayer:
        """With meters."""
        return self._metered(self._fast.mlp(layer, precision, experts))

    def rotation(self, *given: Any) -> Any:
        """The runner's."""
        return self._fast.rotation(*given)

    def _metered(self, sublayer: SubLayer) -> SubLayer:
        self.products = {}
        return sublayer.with_projections(
            *(_Meter(self, number, dense) for number, dense in enumerate(sublayer.projections))
        )

    def note(self, number: int, hidden: Tensor) -> None:
        """Sums of products [blocks, size, size] of what linear layer ``number`` of the sub-layer is fed, by kind."""
        sums = self.products.setdefault(number, {})
        for kind, (begin, end) in zip(self.kinds, self._bounds, strict=True):
            rows = hidden[begin + _SINKS : end].float()
            size = block_of(rows.shape[1], self._block)
            if kind not in sums:
                sums[kind] = torch.zeros(rows.shape[1] // size, size, size)
            blocks = rows.view(len(rows), -1, size).transpose(0, 1)
            sums[kind].baddbmm_(blocks.transpose(1, 2), blocks)


class _Meter:
    def __init__(self, calibration: CalibrationPass, number: int, dense: Dense) -> None:
        self._calibration, self._number, self._dense = calibration, number, dense

    def __call__(self, hidden: Tensor) -> Tensor:
        self._calibration.note(self._number, hidden)
        return self._dense(hidden)
