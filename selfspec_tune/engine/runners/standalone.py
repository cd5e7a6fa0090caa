"""Drafts that stand alone, as exported ones do: the draft keeps keys and values of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.draft.source import common_prefix
from selfspec_tune.engine.runner import Runner, Scores, Want, draft_ahead
from selfspec_tune.engine.runners.native import NativeRunner
from selfspec_tune.models import LoadedModel


class StandaloneRunner:
    """Verification by ``full``, drafts by ``alone``: two runners of one model, each with a cache of its own.

    The draft reads the prompt and every accepted token itself, as a server's draft model does: before each draft pass
    its cache is cut back to what it shares with the text so far, and what it has not read yet goes into the same pass.
    So nothing that it attends to is the full model's. The prompt is read by both in the prefill.
    """

    name = "standalone"

    def __init__(self, full: Runner, alone: Runner) -> None:
        self._full, self._alone = full, alone
        self.num_layers = full.num_layers
        self.vocabulary_size = full.vocabulary_size
        self._text: list[int] = []
        self._read: list[int] = []  # what the draft has in its cache

    @classmethod
    def of(cls, chosen: Runner, loaded: LoadedModel) -> StandaloneRunner:
        """Two like the runner that was ``chosen`` for a model: it has proved equal, so that the second need not."""
        kind: Any = type(chosen)
        alone: Runner = kind(loaded)
        if isinstance(chosen, NativeRunner) and isinstance(alone, NativeRunner):
            alone.notice = chosen.notice
        return cls(chosen, alone)

    @property
    def about(self) -> str:
        return self._full.about

    @property
    def length(self) -> int:
        return len(self._text)

    @property
    def capacity(self) -> int:
        return min(self._full.capacity, self._alone.capacity)

    def reserve(self, capacity: int) -> None:
        self._full.reserve(capacity)
        self._alone.reserve(capacity)
        del self._text[self._full.length :]
        del self._read[self._alone.length :]

    def set_draft(self, draft: Draft) -> None:
        self._alone.set_draft(draft)
        self._forget()

    def know(self, tokens: Iterable[int]) -> None:
        self._alone.know(tokens)

    @property
    def draft_ids(self) -> Tensor | None:
        return self._alone.draft_ids

    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        """Of the draft too: its tokens count as text until `rewind` takes them back."""
        if is_draft:
            self._alone.rewind(common_prefix(self._read, self._text))
            unread = self._text[self._alone.length :]
            scores = self._alone.forward([*unread, *tokens], is_draft=True, want=want, last_only=last_only)
            self._note_read(tokens)
            return scores.last(len(tokens))
        if last_only and not self._text:  # a prompt; what follows it the draft reads in its next pass
            self._forget()
            self._alone.forward(tokens, is_draft=True, want=Want.TOKENS, last_only=True)
            self._read = list(tokens)
        self._text += tokens
        return self._full.forward(tokens, want=want, last_only=last_only)

    def draft_ahead(self, token: int, count: int) -> Scores:
        if count < 1:
            return Scores()
        drafted = self.forward([token], is_draft=True, want=Want.CERTAINTIES)
        if count > 1:
            drafted.extend(draft_ahead(self._alone, drafted.tokens[0], count - 1))
            self._note_read(drafted.tokens[:-1])
        return drafted

    def rewind(self, length: int) -> None:
        del self._text[length:]
        self._full.rewind(length)

    def synchronize(self) -> None:
        self._full.synchronize()
        self._alone.synchronize()

    def _note_read(self, tokens: Sequence[int]) -> None:
        self._text += tokens
        self._read = list(self._text)

    def _forget(self) -> None:
        """Another text, or another draft: nothing in the draft's cache is of use."""
        self._alone.rewind(0)
        self._read = []
