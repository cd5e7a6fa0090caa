"""What a draft would have said at every position of a known text, without decoding.

In self-speculative decoding the verified prefix has *full-model* keys and values, and
only the drafted tokens have the draft's own. So the token-exact pass lets each position
attend to the full model's KV strictly before it, and to its own draft KV at itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from selfspec_tune.draft import Draft, DraftPrecision
from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.engine.reference import ReferenceRunner, skipped
from selfspec_tune.engine.runner import Runner, check_same_precision
from selfspec_tune.models import LoadedModel
from selfspec_tune.skip_set import SkipSet

_SAME = DraftPrecision()


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of known text: positions ``start`` … ``end`` - 1 of ``tokens`` are drafted from.

    ``tokens`` has one more token than ``end``, so that each position has a true successor.
    """

    tokens: tuple[int, ...]
    start: int
    end: int

    @property
    def targets(self) -> tuple[int, ...]:
        """The token that the full model put after each position of the window."""
        return self.tokens[self.start + 1 : self.end + 1]


@dataclass(frozen=True, slots=True)
class Trace:
    """What a draft says along windows: per window, per position.

    ``matches``: its most probable token is the full model's; ``confidences``: the
    probability it gives to its most probable token; ``nll``: mean negative log-likelihood
    (nats) of the full model's tokens, those outside the draft's vocabulary left out.
    """

    matches: tuple[tuple[bool, ...], ...]
    confidences: tuple[tuple[float, ...], ...]
    nll: float

    @property
    def match_rate(self) -> float:
        """Share of positions that match."""
        flat = [match for window in self.matches for match in window]
        return sum(flat) / len(flat)


class DraftScorer(Protocol):
    """Scores skip sets on fixed windows of text."""

    windows: Sequence[Window]
    is_token_exact: bool

    def trace(self, skip_set: SkipSet, vocabulary: int | None = None, precision: DraftPrecision = _SAME) -> Trace:
        """The draft's trace with ``skip_set`` at ``precision``, restricted to the first ``vocabulary`` tokens.

        At a low precision the runner's draft becomes this one. Raises `UsageError` where it has none such.
        """


def make_scorer(runner: Runner, loaded: LoadedModel, windows: Sequence[Window]) -> DraftScorer:
    """Token-exact on the fast runner, else an approximation through the model's own forward."""
    if isinstance(runner, FastRunner):
        return TokenExactScorer(runner, windows)
    assert isinstance(runner, ReferenceRunner)
    return DraftKvScorer(loaded, windows)


class TokenExactScorer:
    """The token-exact pass over all windows at once; linear layers see them as one batch."""

    is_token_exact = True

    @torch.inference_mode()
    def __init__(self, runner: FastRunner, windows: Sequence[Window]) -> None:
        self._runner = runner
        self.windows = windows
        self._prefixes = [self._full_model_kv(window) for window in windows]
        self._masks = [_token_exact_mask(window, runner) for window in windows]
        drafted = [token for window in windows for token in window.tokens[window.start : window.end]]
        self._hidden = runner.embed(drafted)
        rows = torch.cat([torch.arange(window.start, window.end) for window in windows])
        self._rotation = runner.rotation(rows.to(self._hidden.device), max(window.end for window in windows))
        self._bounds = _bounds(windows)

    def _full_model_kv(self, window: Window) -> list[tuple[Tensor, Tensor]]:
        """Per layer, rotated keys and values [kv heads, end, size] of the full model."""
        self._runner.prefill(window.tokens[: window.end])
        return [self._runner.keys_and_values(layer) for layer in range(self._runner.num_layers)]

    @torch.inference_mode()
    def trace(self, skip_set: SkipSet, vocabulary: int | None = None, precision: DraftPrecision = _SAME) -> Trace:
        if not precision.is_same:
            self._runner.set_draft(Draft(skip_set, precision=precision, vocabulary=vocabulary))  # makes its copies
        hidden = self._hidden
        cos, signed_sin = self._rotation
        for index, skip in enumerate(skip_set.to_flags()):
            if skip:
                continue
            layer, is_mlp = divmod(index, 2)
            if is_mlp:
                hidden = self._runner.mlp(layer, precision.of(index))(hidden, 0)
            else:
                attention = self._runner.attention(layer, precision.of(index))
                queries, keys, values = attention.project(hidden, cos, signed_sin)
                attended = [
                    attention.attend_masked(
                        queries[a:b],
                        torch.cat((prefix[layer][0], keys[a:b].transpose(0, 1)), 1),
                        torch.cat((prefix[layer][1], values[a:b].transpose(0, 1)), 1),
                        mask,
                    )
                    for (a, b), prefix, mask in zip(self._bounds, self._prefixes, self._masks, strict=True)
                ]
                hidden = attention.add(hidden, torch.cat(attended))
        return _to_trace(self._runner.head(hidden, vocabulary, precision.head), self.windows)


class DraftKvScorer:
    """The draft's own forward over the whole text, prefix included.

    Every key and value is then the draft's own, which underrates it; good enough to rank
    sub-layers where the token-exact pass is not to be had.
    """

    is_token_exact = False

    def __init__(self, loaded: LoadedModel, windows: Sequence[Window]) -> None:
        self._loaded = loaded
        self.windows = windows

    @torch.inference_mode()
    def trace(self, skip_set: SkipSet, vocabulary: int | None = None, precision: DraftPrecision = _SAME) -> Trace:
        check_same_precision(Draft(skip_set, precision=precision), "reference")
        logits = []
        with skipped(self._loaded, skip_set):
            for window in self.windows:
                input_ids = torch.tensor([window.tokens[: window.end]], device=self._loaded.device)
                keep = window.end - window.start
                output = self._loaded.model(input_ids=input_ids, use_cache=False, logits_to_keep=keep)
                logits.append(output.logits[0, -keep:, :vocabulary])
        return _to_trace(torch.cat(logits), self.windows)


def _bounds(windows: Sequence[Window]) -> list[tuple[int, int]]:
    bounds, start = [], 0
    for window in windows:
        bounds.append((start, start + window.end - window.start))
        start = bounds[-1][1]
    return bounds


def _token_exact_mask(window: Window, runner: FastRunner) -> Tensor:
    """[positions, end + positions]: full-model KV strictly before, own KV at itself."""
    num = window.end - window.start
    rows = torch.arange(window.start, window.end)[:, None]
    before = torch.arange(window.end)[None] < rows
    return torch.cat((before, torch.eye(num, dtype=torch.bool)), 1).to(runner.device)


def _to_trace(logits: Tensor, windows: Sequence[Window]) -> Trace:
    logits = logits.float()
    targets = torch.tensor([token for window in windows for token in window.targets], device=logits.device)
    inside = targets < logits.shape[-1]
    normaliser = logits.logsumexp(-1)
    top, tokens = logits.max(-1)
    of_target = logits.gather(-1, targets.clamp(max=logits.shape[-1] - 1)[:, None])[:, 0]
    nll = (normaliser - of_target)[inside].mean() if bool(inside.any()) else torch.tensor(float("inf"))
    matches = ((tokens == targets) & inside).tolist()
    confidences = torch.exp(top - normaliser).tolist()
    bounds = _bounds(windows)
    return Trace(
        tuple(tuple(matches[a:b]) for a, b in bounds),
        tuple(tuple(confidences[a:b]) for a, b in bounds),
        float(nll),
    )
