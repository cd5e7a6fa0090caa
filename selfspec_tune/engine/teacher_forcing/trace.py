"""What a draft says along known text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.runners.penalty import NO_PENALTY, penalise_rows
from selfspec_tune.engine.teacher_forcing.window import Window, WindowIds


@dataclass(frozen=True, slots=True)
class Trace:
    """What a draft says along windows: per window, per position.

    ``matches``: its most probable token is the full model's; ``confidences``: the
    probability it gives to its most probable token; ``leads``: of these, as `Certainty` has it;
    ``nll``: mean negative log-likelihood (nats) of the full model's tokens, those that the draft
    cannot choose left out.

    All that as the first token of a draft. ``later[k]``: the same as token k + 2 of one, whose earlier
    tokens were right; the last of them stands for all further tokens. Empty: the first stands for all.
    """

    matches: tuple[tuple[bool, ...], ...]
    confidences: tuple[tuple[float, ...], ...]
    leads: tuple[tuple[float, ...], ...]
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


def _under_penalty(
    logits: Tensor, windows: Sequence[Window], pieces: Sequence[tuple[int, int]], ids: WindowIds
) -> Tensor:
    """The logits themselves where there is no penalty: they are large."""
    if all(window.repetition_penalty == NO_PENALTY for window in windows):
        return logits
    others: list[int] = ids.others.tolist()
    return torch.cat(
        [
            penalise_rows(logits[begin:end], window.tokens[: window.end], window.repetition_penalty, others)
            for (begin, end), window in zip(pieces, windows, strict=True)
        ]
    )


def to_trace(logits: Tensor, windows: Sequence[Window], ids: WindowIds) -> Trace:
    """The trace of logits [positions of all windows, ids]; those that a draft does not know yet do not count."""
    pieces = bounds([window.end - window.start for window in windows])
    logits = ids.hide(_under_penalty(logits, windows, pieces, ids).float())
    targets = torch.tensor([token for window in windows for token in window.targets], device=logits.device)
    columns, inside = ids.columns(targets)
    normaliser = logits.logsumexp(-1)
    if not bool(normaliser.isfinite().all()):  # a draft may overflow where the model does not: it knows nothing there
        logits = logits.nan_to_num(0.0, 0.0, -inf)
        normaliser = logits.logsumexp(-1)
    top, tokens = logits.max(-1)
    highest = logits.topk(min(2, logits.shape[-1])).values  # of equal ones it may not name the first token
    margin = highest[:, 0] - highest[:, 1] if highest.shape[-1] > 1 else torch.full_like(top, inf)
    of_target = logits.gather(-1, columns[:, None])[:, 0]
    nll = (normaliser - of_target)[inside].mean() if bool(inside.any()) else torch.tensor(float("inf"))
    matches = ((tokens == columns) & inside).tolist()
    confidences, leads = torch.exp(top - normaliser).tolist(), torch.sigmoid(margin).tolist()
    return Trace(
        tuple(tuple(matches[a:b]) for a, b in pieces),
        tuple(tuple(confidences[a:b]) for a, b in pieces),
        tuple(tuple(leads[a:b]) for a, b in pieces),
        float(nll),
    )
