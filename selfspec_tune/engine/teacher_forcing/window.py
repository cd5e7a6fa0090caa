"""Known text that drafts are scored on, and which token ids a draft knows along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.runners.penalty import NO_PENALTY


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


class WindowIds:
    """A draft's ids below ``first``, out of ``vocabulary_size``, and all others that stand in the texts of ``windows``.

    ``others`` [ids]: these, ascending. The draft knows one from the position on at which it stands in the window's
    text first, as it does while it decodes (`KnownIds`, whose limit no window comes near).
    """

    def __init__(self, windows: Sequence[Window], draft: Draft, vocabulary_size: int, device: torch.device) -> None:
        self.first = draft.covers(vocabulary_size)
        begun = [_first_places(window.tokens[: window.end], self.first, vocabulary_size) for window in windows]
        others = sorted({token for own in begun for token in own})
        self.others = torch.tensor(others, dtype=torch.int64, device=device)
        unknown = [
            torch.tensor([own.get(token, window.end) for token in others], dtype=torch.int64)
            > torch.arange(window.start, window.end)[:, None]
            for own, window in zip(begun, windows, strict=True)
        ]
        self._unknown = torch.cat(unknown).to(device)

    def among(self, logits: Tensor) -> Tensor:
        """Logits [positions, vocabulary] of these ids alone: [positions, first and others]."""
        return torch.cat((logits[:, : self.first], logits[:, self.others]), -1)

    def hide(self, logits: Tensor) -> Tensor:
        """Logits [the windows' positions, first and others], now minus infinity where an id is unknown."""
        if len(self.others):
            logits[:, self.first :].masked_fill_(self._unknown, -inf)
        return logits

    def columns(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """In which column of such logits ``targets`` [the windows' positions] are, and whether they are known there.

        The column of an unknown one is any.
        """
        inside = targets < self.first
        if not len(self.others):
            return targets.clamp(max=self.first - 1), inside
        places = torch.searchsorted(self.others, targets).clamp(max=len(self.others) - 1)
        unknown = self._unknown.gather(-1, places[:, None])[:, 0] | (self.others[places] != targets)
        return torch.where(inside, targets, self.first + places), inside | ~unknown


def _first_places(tokens: Sequence[int], first: int, end: int) -> dict[int, int]:
    """Where each id from ``first`` to ``end`` - 1 stands first."""
    return {token: place for place, token in reversed(list(enumerate(tokens))) if first <= token < end}
