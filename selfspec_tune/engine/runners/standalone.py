"""Drafts that stand alone, as exported ones do: the draft keeps keys and values of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.draft.source import common_prefix
from selfspec_tune.engine.runner import Runner, greedy_steps
from selfspec_tune.engine.runners.fast import FastRunner
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
        self._greedy_full, self._greedy_alone = greedy_steps(full), greedy_steps(alone)

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
        self._greedy_alone = greedy_steps(self._alone, needs_probability=draft.policy.needs_probability)
        self._forget()

    def prefill(self, tokens: Sequence[int]) -> Tensor:
        self._forget()
        logits = self._full.prefill(tokens)
        if isinstance(self._alone, FastRunner):
            self._alone.draft_prefill(tokens)
        else:
            self._alone.reserve(len(tokens))
            self._alone.draft_pass(tokens)
        self._text, self._read = list(tokens), list(tokens)
        return logits

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """By the full model alone; the draft reads them in its next pass."""
        self._text += tokens
        return self._full.extend(tokens)

    def decode(self, token: int) -> Tensor:
        self._text.append(token)
        return self._full.decode(token)

    def decode_greedy(self, token: int) -> int:
        self._text.append(token)
        return self._greedy_full.decode_greedy(token)

    def verify(self, tokens: Sequence[int]) -> Tensor:
        self._text += tokens
        return self._full.verify(tokens)

    def verify_greedy(self, tokens: Sequence[int]) -> list[int]:
        self._text += tokens
        return self._greedy_full.verify_greedy(tokens)

    def draft_step(self, token: int) -> Tensor:
        return self.draft_pass([token])[0]

    def draft_pass(self, tokens: Sequence[int]) -> Tensor:
        """Logits [tokens, draft vocabulary]; the tokens count as text until `rewind` takes them back."""
        unread = self._unread()
        logits = self._alone.draft_pass([*unread, *tokens])[len(unread) :]
        self._note_read(tokens)
        return logits

    def draft_pass_greedy(self, tokens: Sequence[int]) -> tuple[list[int], list[float]]:
        unread = self._unread()
        following, probabilities = self._greedy_alone.draft_pass_greedy([*unread, *tokens])
        self._note_read(tokens)
        return following[len(unread) :], probabilities[len(unread) :]

    def draft_greedy(self, token: int, count: int) -> tuple[list[int], list[float]]:
        if count < 1:
            return [], []
        drafted, probabilities = self.draft_pass_greedy([token])
        if count > 1:
            more, further = self._greedy_alone.draft_greedy(drafted[0], count - 1)
            self._note_read([*drafted, *more[:-1]])
            drafted, probabilities = [*drafted, *more], [*probabilities, *further]
        return drafted, probabilities

    def rewind(self, length: int) -> None:
        del self._text[length:]
        self._full.rewind(length)

    def synchronize(self) -> None:
        self._full.synchronize()
        self._alone.synchronize()

    def _unread(self) -> list[int]:
        """What the draft has yet to read of the text, once what is no longer text is gone from its cache."""
        self._alone.rewind(common_prefix(self._read, self._text))
        return self._text[self._alone.length :]

    def _note_read(self, tokens: Sequence[int]) -> None:
        self._text += tokens
        self._read = list(self._text)

    def _forget(self) -> None:
        """Another text, or another draft: nothing in the draft's cache is of use."""
        self._alone.rewind(0)
        self._read = []
