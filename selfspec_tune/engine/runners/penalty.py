"""Repetition penalty: a runner whose logits count against the tokens that stand before them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine.runner import Runner, Scores, Want, scored

NO_PENALTY = 1.0


def penalised(runner: Runner, penalty: float, cached: Sequence[int] = ()) -> Runner:
    """The runner under a repetition ``penalty``; itself where that is 1. ``cached``: the tokens that it has read."""
    return runner if penalty == NO_PENALTY else PenalisedRunner(runner, penalty, cached)


class PenalisedRunner:
    """A `Runner` that holds tokens against what occurred before: positive logits / ``penalty``, negative ones times it.

    As in CTRL (Keskar et al. 2019) and transformers, prompt included. Every row of a pass is penalised by its own
    prefix, so each drafted token is held against what plain decoding would draw it from. Logits are float32.
    """

    def __init__(self, runner: Runner, penalty: float, cached: Sequence[int] = ()) -> None:
        self._runner = runner
        self._penalty = penalty
        self.name = runner.name
        self.num_layers = runner.num_layers
        self.vocabulary_size = runner.vocabulary_size
        self._read(cached)

    @property
    def about(self) -> str:
        return self._runner.about

    @property
    def length(self) -> int:
        return self._runner.length

    @property
    def capacity(self) -> int:
        return self._runner.capacity

    def reserve(self, capacity: int) -> None:
        self._runner.reserve(capacity)
        self.rewind(self._runner.length)

    def set_draft(self, draft: Draft) -> None:
        self._runner.set_draft(draft)

    def know(self, tokens: Iterable[int]) -> None:
        self._runner.know(tokens)

    @property
    def draft_ids(self) -> Tensor | None:
        return self._runner.draft_ids

    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        logits = self._runner.forward(tokens, is_draft=is_draft, last_only=last_only).logits
        if last_only:
            self._read([*self._tokens, *tokens])
            penalised = self._under_penalty(logits)
        else:
            penalised = self._after(tokens, logits)
        return scored(penalised, want, self, tokens, is_draft=is_draft)

    def rewind(self, length: int) -> None:
        self._runner.rewind(length)
        for token in self._tokens[length:]:
            self._counts[token] -= 1
        del self._tokens[length:]

    def synchronize(self) -> None:
        self._runner.synchronize()

    def _read(self, tokens: Sequence[int]) -> None:
        """Count ``tokens`` as all that has been read."""
        self._tokens = list(tokens)
        with torch.inference_mode(False):  # or nobody outside of that mode could count on
            read = torch.tensor(self._tokens, dtype=torch.int64)
            self._counts = torch.bincount(read, minlength=self.vocabulary_size)

    def _after(self, tokens: Sequence[int], logits: Tensor) -> Tensor:
        """Each row of logits [tokens, vocabulary] under the penalty of all tokens up to the one that it follows."""
        rows = []
        for token, row in zip(tokens, logits, strict=True):
            self._tokens.append(token)
            self._counts[token] += 1
            rows.append(self._under_penalty(row))
        return torch.stack(rows)

    def _under_penalty(self, logits: Tensor) -> Tensor:
        """Logits [..., vocabulary, or a draft's part of it] under the penalty of what has been read."""
        scores = logits.float()
        has_occurred = self._counts[: scores.shape[-1]].to(scores.device) > 0
        return torch.where(has_occurred, _held_against(scores, self._penalty), scores)


def penalise_rows(logits: Tensor, text: Sequence[int], penalty: float, others: Sequence[int] = ()) -> Tensor:
    """Logits [positions, vocabulary or a draft's ids] under the ``penalty`` of what stands up to each.

    The positions are the last ones of ``text``; a draft's ids are the first ones and ``others``, all past these.
    Float32, but for a penalty of 1, which leaves them as they are.
    """
    if penalty == NO_PENALTY:
        return logits
    scores = logits.float()
    first = scores.shape[-1] - len(others)
    column_of_other = {token: column for column, token in enumerate(others, first)}
    columns = (token if token < first else column_of_other.get(token) for token in text)
    begun_at = {column: position for position, column in reversed(list(enumerate(columns))) if column is not None}
    places = torch.tensor(list(begun_at), dtype=torch.int64, device=scores.device)
    begun = torch.tensor(list(begun_at.values()), device=scores.device)
    positions = torch.arange(len(text) - len(scores), len(text), device=scores.device)
    own = scores[:, places]
    penalised_own = torch.where(begun <= positions[:, None], _held_against(own, penalty), own)
    return scores.index_copy(1, places, penalised_own)


def _held_against(scores: Tensor, penalty: float) -> Tensor:
    return torch.where(scores < 0, scores * penalty, scores / penalty)
