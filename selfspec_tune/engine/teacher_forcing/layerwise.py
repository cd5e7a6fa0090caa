"""Scoring by the fast runner's own sub-layers, one after the other, over all windows at once.

Linear layers see the windows as one batch. Drafts that begin alike share their beginning:
hidden states after every few sub-layers are kept for a while.

There the verified prefix has *full-model* keys and values, and only the drafted tokens
have the draft's own. So a position that a draft begins at attends to the full model's KV strictly before it,
and to its own draft KV at itself. The draft's next token comes from the position after, which attends to the
draft's KV at the position before too, as that computed it at the beginning of a draft; and so on.

It computes the whole text itself, prompt included: every key and value that it attends to
is its own. It accepts less than a draft that shares the full model's cache.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.draft.sublayer import SubLayerId, SubLayerKind
from selfspec_tune.engine.layers.attention import Attention
from selfspec_tune.engine.layers.cache import seen
from selfspec_tune.engine.layers.rope import Rotation
from selfspec_tune.engine.layers.sublayer import Stream
from selfspec_tune.engine.runner import prefill
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.teacher_forcing.trace import Trace, bounds, to_trace
from selfspec_tune.engine.teacher_forcing.window import Window, WindowIds
from selfspec_tune.plans import AttentionPlan
from selfspec_tune.plans.attention import GrowthPlan, Reach

_EVERY = 4  # sub-layers between hidden states that are kept: at ends of layers, where all is in the stream
_KEPT_BYTES = 128 << 20
Sublayers = tuple[Precision | None, ...]
_Path = tuple[int | None, Sublayers]  # through sub-layers with so many experts


class LayerwiseScorer:
    """What the scorers on the fast runner share; they differ in what a position attends to."""

    approximation = ""

    @torch.inference_mode()
    def __init__(self, runner: FastRunner, windows: Sequence[Window], positions: Sequence[Sequence[int]]) -> None:
        """``positions``: those of each window's text that the draft computes, its own as often as tokens of a draft."""
        self.windows = windows
        self._runner = runner
        tokens = [window.tokens[i] for window, own in zip(windows, positions, strict=True) for i in own]
        runner.reserve(max(window.end for window in windows))
        self._positions = torch.tensor([i for own in positions for i in own], device=runner.device)
        self._embedded = Stream(runner.embed(tokens, self._positions))
        self._bounds = bounds([len(own) for own in positions])
        self._scored = _scored(windows, positions, self._bounds).to(runner.device)
        self._known = _HiddenStates(_KEPT_BYTES)
        self._rotations = dict[tuple[str | None, GrowthPlan | None], Rotation]()

    @torch.inference_mode()
    def trace(self, draft: Draft) -> Trace:
        """What ``draft`` says along the windows; see `DraftScorer`."""
        self.prepare(draft)
        sublayers = draft.sublayers
        done, hidden = self._known.longest(draft.experts, sublayers)
        stream = self._embedded if hidden is None else Stream(hidden)
        for index in range(done, len(sublayers)):
            stream = self.through(stream, index, sublayers[index], draft.experts)
            if (index + 1) % _EVERY == 0:
                self._known.keep((draft.experts, sublayers[: index + 1]), stream.hidden)
        ids = WindowIds(self.windows, draft, self._runner.vocabulary_size, self._runner.device)
        logits = (self._head(stream.hidden[rows], draft, ids) for rows in self._scored)
        first, *later = (to_trace(each, self.windows, ids) for each in logits)
        return replace(first, later=tuple(later))

    def prepare(self, draft: Draft) -> None:
        """Make the low-precision copies that ``draft`` computes with; the runner's draft becomes this one."""
        if not draft.precision.is_same:
            self._runner.set_draft(draft)

    @property
    def embedded(self) -> Stream:
        """The stream before the first sub-layer."""
        return self._embedded

    @torch.inference_mode()
    def through(self, stream: Stream, index: int, precision: Precision | None, experts: int | None = None) -> Stream:
        """The stream after sub-layer ``index`` at ``precision``, with so many experts; None: it is skipped."""
        if precision is None:
            return stream
        kind, layer = SubLayerId.of(index)
        if kind is SubLayerKind.MLP:
            return self._runner.mlp(layer, precision, experts)(stream, 0)
        attention = self._runner.attention(layer, precision)
        queries, keys, values, gate = attention.project(stream, self._rotation(attention.plan))
        attended = [
            self._attend(attention, layer, number, queries[a:b], keys[a:b], values[a:b])
            for number, (a, b) in enumerate(self._bounds)
        ]
        return attention.add(stream, torch.cat(attended), gate)

    def _rotation(self, plan: AttentionPlan) -> Rotation:
        key = None if plan.rope is None else plan.rope.table, plan.growth
        if key not in self._rotations:
            self._rotations[key] = self._runner.rotation(plan, self._positions)
        return self._rotations[key]

    def _head(self, hidden: Tensor, draft: Draft, ids: WindowIds) -> Tensor:
        others = ids.others if len(ids.others) else None
        return self._runner.head(hidden, draft.vocabulary, draft.precision.head, others)

    def _attend(
        self, attention: Attention, layer: int, number: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Attention of window ``number``'s positions [positions, heads, size]; [positions, heads * size]."""
        raise NotImplementedError


def _scored(windows: Sequence[Window], positions: Sequence[Sequence[int]], pieces: Sequence[tuple[int, int]]) -> Tensor:
    """[depths, the windows' positions]: where among all rows each of the windows' own is, every time it comes."""
    found = []
    for window, own, (begin, _) in zip(windows, positions, pieces, strict=True):
        rows = [row for row, position in enumerate(own, begin) if position >= window.start]
        found.append(torch.tensor(rows).reshape(-1, window.end - window.start))
    return torch.cat(found, 1)


class _HiddenStates:
    """Hidden states by the sub-layers that led to them; the least recently used are forgotten."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[_Path, Tensor] = OrderedDict()
        self._bytes = 0

    def longest(self, experts: int | None, sublayers: Sublayers) -> tuple[int, Tensor | None]:
        """How many of ``sublayers``, from the first, are known, and the hidden state after them."""
        for depth in range(len(sublayers) // _EVERY * _EVERY, 0, -_EVERY):
            path = experts, sublayers[:depth]
            hidden = self._held.get(path)
            if hidden is not None:
                self._held.move_to_end(path)
                return depth, hidden
        return 0, None

    def keep(self, path: _Path, hidden: Tensor) -> None:
        """Remember ``hidden``; older states make room."""
        self._held[path] = hidden
        self._bytes += _size(hidden)
        while self._bytes > self._most_bytes and len(self._held) > 1:
            self._bytes -= _size(self._held.popitem(last=False)[1])


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class TokenExactScorer(LayerwiseScorer):
    """The token-exact pass over the windows' positions; their prefixes come from the full model.

    Every position is computed ``depths`` times: as the first of a draft, as the second, and so on. What further
    tokens attend to is taken to be what the last of these does: exact for drafts of up to ``depths`` tokens.
    """

    def __init__(self, runner: FastRunner, windows: Sequence[Window], depths: int = 1) -> None:
        self._prefixes = [_full_model_kv(runner, window) for window in windows]
        super().__init__(runner, windows, [list(range(window.start, window.end)) * depths for window in windows])
        rows = [self._positions[begin:end] for begin, end in self._bounds]
        self._sights = [_Sight(window, depths, own) for window, own in zip(windows, rows, strict=True)]

    def _attend(
        self, attention: Attention, layer: int, number: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        prefix_keys, prefix_values = self._prefixes[number][layer]
        sight = self._sights[number]
        return attention.attend_masked(
            queries,
            torch.cat((prefix_keys, keys.transpose(0, 1)), 1),
            torch.cat((prefix_values, values.transpose(0, 1)), 1),
            sight.within(attention.plan.reach),
            sight.columns,
        )


class _Sight:
    """What the ``rows`` of a window, its positions once for each depth, may attend to.

    ``columns`` [end + rows]: the positions of keys, the full model's first and then the rows' own: windows, chunks and
    distances are between positions, wherever a key stands.
    """

    def __init__(self, window: Window, depths: int, rows: Tensor) -> None:
        self.columns = torch.cat((torch.arange(window.end, device=rows.device), rows))
        self._rows = rows
        self._by_reach = {Reach(): _token_exact_mask(window, depths).to(rows.device)}

    def within(self, reach: Reach) -> Tensor:
        """Bool [rows, columns]: true where a row attends, if attentions reach so far."""
        if reach not in self._by_reach:
            self._by_reach[reach] = self._by_reach[Reach()] & seen(reach, self._rows, self.columns)
        return self._by_reach[reach]


@torch.inference_mode()
def _full_model_kv(runner: FastRunner, window: Window) -> list[tuple[Tensor, Tensor]]:
    """Per layer, rotated keys and values [kv heads, end, size] of the full model."""
    prefill(runner, window.tokens[: window.end])
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


class StandaloneScorer(LayerwiseScorer):
    """The draft's own causal pass over each window's whole text, on the fast runner's sub-layers."""

    def __init__(self, runner: FastRunner, windows: Sequence[Window]) -> None:
        super().__init__(runner, windows, [range(window.end) for window in windows])

    def _attend(
        self, attention: Attention, layer: int, number: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        return attention.attend(queries, keys.transpose(0, 1), values.transpose(0, 1), 0)
