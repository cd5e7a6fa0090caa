"""Known text that drafts are scored on, and what a draft says along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.runners.penalty import NO_PENALTY, penalise_rows


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of known text: positions ``start`` … ``end`` - 1 of ``tokens`` are drafted from.

    ``tokens`` has one more token than ``end``, so that each position has a true successor. ``repetition_penalty``:
    under which the text was decoded, and under which drafts are to be.
    """

    tokens: tuple[int, ...]
    start: int
    end: int
    repetition_penalty: float = NO_PENALTY

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

    All that as the first token of a draft. ``later[k]``: the same as token k + 2 of one, whose earlier
    tokens were right; the last of them stands for all further tokens. Empty: the first stands for all.
    """

    matches: tuple[tuple[bool, ...], ...]
    confidences: tuple[tuple[float, ...], ...]
    nll: float
    later: tuple[Trace, ...] = ()

    @property
    def match_rate(self) -> float:
        """Share of positions that match."""
        flat = [match for window in self.matches for match in window]
        return sum(flat) / len(flat)


class DraftScorer(Protocol):
    """Scores drafts on fixed windows of text; a draft's policy and lookup have no influence.

    ``approximation``: what a user should know where the architecture allows no better score; empty: nothing.
    """

    windows: Sequence[Window]
    approximation: str

    def trace(self, draft: Draft) -> Trace:
        """What ``draft`` says along the windows.

        At a low precision the runner's draft becomes this one. Raises `UsageError` where it has none such.
        """


def bounds(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Where stretches of ``lengths`` begin and end when they stand one after the other."""
    found, start = [], 0
    for length in lengths:
        found.append((start, start + length))
        start += length
    return found


def _under_penalty(logits: Tensor, windows: Sequence[Window], pieces: Sequence[tuple[int, int]]) -> Tensor:
    """The logits themselves where there is no penalty: they are large."""
    if all(window.repetition_penalty == NO_PENALTY for window in windows):
        return logits
    return torch.cat(
        [
            penalise_rows(logits[begin:end], window.tokens[: window.end], window.repetition_penalty)
            for (begin, end), window in zip(pieces, windows, strict=True)
        ]
    )


def to_trace(logits: Tensor, windows: Sequence[Window]) -> Trace:
    """The trace of logits [positions of all windows, draft vocabulary]."""
    pieces = bounds([window.end - window.start for window in windows])
    logits = _under_penalty(logits, windows, pieces).float()
    targets = torch.tensor([token for window in windows for token in window.targets], device=logits.device)
    inside = targets < logits.shape[-1]
    normaliser = logits.logsumexp(-1)
    if not bool(normaliser.isfinite().all()):  # a draft may overflow where the model does not: it knows nothing there
        logits = logits.nan_to_num(0.0, 0.0, -inf)
        normaliser = logits.logsumexp(-1)
    top, tokens = logits.max(-1)
    of_target = logits.gather(-1, targets.clamp(max=logits.shape[-1] - 1)[:, None])[:, 0]
    nll = (normaliser - of_target)[inside].mean() if bool(inside.any()) else torch.tensor(float("inf"))
    matches = ((tokens == targets) & inside).tolist()
    confidences = torch.exp(top - normaliser).tolist()
    return Trace(
        tuple(tuple(matches[a:b]) for a, b in pieces),
        tuple(tuple(confidences[a:b]) for a, b in pieces),
        float(nll),
    )
