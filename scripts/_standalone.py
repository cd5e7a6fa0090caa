"""Really running a draft that stands alone: a runner whose draft keeps keys and values of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.engine import Runner
from selfspec_tune.engine.ngram import common_prefix


class StandaloneRunner:
    """Verification by ``full``, drafts by ``alone``: two runners of one model, each with a cache of its own.

    The draft reads the prompt and every accepted token itself, so nothing that it attends to is the
    full model's. Slow and obviously right: before each draft pass its cache is cut back to what it
    shares with the text so far, and what it has not read yet goes into the same pass, as an exported
    draft would do it. So counts mean what they do elsewhere; times mean nothing.
    """

    name = "standalone"

    def __init__(self, full: Runner, alone: Runner) -> None:
        self._full = full
        self._alone = alone
        self.num_layers = full.num_layers
        self.vocabulary_size = full.vocabulary_size
        self._text: list[int] = []
        self._read: list[int] = []  # what the draft has in its cache

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

    def prefill(self, tokens: Sequence[int]) -> Tensor:
        self._forget()
        self._text = list(tokens)
        return self._full.prefill(tokens)

    def decode(self, token: int) -> Tensor:
        self._text.append(token)
        return self._full.decode(token)

    def verify(self, tokens: Sequence[int]) -> Tensor:
        self._text += tokens
        return self._full.verify(tokens)

    def draft_step(self, token: int) -> Tensor:
        return self.draft_pass([token])[0]

    def draft_pass(self, tokens: Sequence[int]) -> Tensor:
        """Logits [tokens, draft vocabulary]; the tokens count as text until `rewind` takes them back."""
        self._alone.rewind(common_prefix(self._read, self._text))
        unread = self._text[self._alone.length :]
        logits = self._alone.draft_pass([*unread, *tokens])[len(unread) :]
        self._text += tokens
        self._read = list(self._text)
        return logits

    def rewind(self, length: int) -> None:
        del self._text[length:]
        self._full.rewind(length)

    def synchronize(self) -> None:
        self._full.synchronize()
        self._alone.synchronize()

    def _forget(self) -> None:
        """Another text, or another draft: nothing in the draft's cache is of use."""
        self._alone.rewind(0)
        self._read = []
