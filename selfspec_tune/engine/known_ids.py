"""The token ids that a draft chooses from: the first ones, and of those past them what its context holds."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import torch
from torch import Tensor

from selfspec_tune.draft import Draft

MOST_OTHERS = 1024  # whose rows of a head are some 3 MB in a model whose draft reads 800


class KnownIds:
    """A draft's ids below ``first``, out of ``vocabulary_size``, and of a text's ids past them the latest.

    ``others`` [ids]: these, ascending; at most `MOST_OTHERS`. ``ids`` [ids]: all of them, or None where these are none.
    """

    def __init__(self, draft: Draft, vocabulary_size: int, device: torch.device) -> None:
        self.first = draft.covers(vocabulary_size)
        self._end = vocabulary_size  # a text may hold ids for which a head has no row
        self.others = torch.empty(0, dtype=torch.int64, device=device)
        self.ids: Tensor | None = None
        self._latest: dict[int, None] = {}

    @property
    def size(self) -> int:
        """How many ids there are up to the last one known."""
        return int(self.others[-1]) + 1 if len(self.others) else self.first

    def add(self, tokens: Iterable[int]) -> bool:
        """Take in what a text begins or goes on with; whether that changes ``others``."""
        before = self._kept()
        for token in tokens:
            if self.first <= token < self._end:
                self._latest.pop(token, None)  # to the end: the latest
                self._latest[token] = None
        kept = self._kept()
        if kept == before:
            return False
        self.others = torch.tensor(kept, device=self.others.device)
        self.ids = torch.cat((torch.arange(self.first, device=self.others.device), self.others))
        return True

    def _kept(self) -> list[int]:
        return sorted(list(self._latest)[-MOST_OTHERS:])

    def among(self, logits: Tensor) -> Tensor:
        """Logits [positions, vocabulary] without those of unknown ids, as `spread` gives them."""
        return self._spread(logits, logits[:, self.others] if len(self.others) else logits)

    def spread(self, logits: Tensor) -> Tensor:
        """Logits [positions, first and others, or more] as [positions, `size`]: minus infinity for unknown ids."""
        return self._spread(logits, logits[:, self.first : self.first + len(self.others)])

    def _spread(self, logits: Tensor, of_others: Tensor) -> Tensor:
        if not len(self.others):
            return logits[:, : self.first]
        spread = logits.new_full((len(logits), self.size), -inf)
        spread[:, : self.first] = logits[:, : self.first]
        spread[:, self.others] = of_others
        return spread
