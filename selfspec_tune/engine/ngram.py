"""Looking the last tokens up in the context: an index that grows with the output."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfspec_tune.draft import NgramLookup

# How far back a match is followed to tell how long it is; the policy tells no longer ones apart.
_LONGEST_MATCH = 16


@dataclass(frozen=True, slots=True)
class Found:
    """``tokens`` that followed the context's last ``match_length`` tokens when they occurred before."""

    tokens: tuple[int, ...] = ()
    match_length: int = 0


NOTHING = Found()


class NgramIndex:
    """Every n-gram of the context with the place after its most recent occurrence.

    Adding a token takes constant time. The context's own last tokens are not indexed until
    another follows them, so a lookup never finds the suffix itself.
    """

    def __init__(self, lookup: NgramLookup, tokens: Iterable[int] = ()) -> None:
        self._lookup = lookup
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._before: list[list[tuple[tuple[int, ...], int | None]]] = []  # what each token's n-grams replaced
        self.extend(tokens)

    @property
    def length(self) -> int:
        """Tokens of the context."""
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Add ``tokens`` to the end of the context."""
        lengths = range(self._lookup.min_match, self._lookup.max_match + 1)
        for token in tokens:
            end = len(self._tokens)
            replaced = []
            for length in lengths:
                if length > end:
                    break
                ngram = tuple(self._tokens[end - length :])
                replaced.append((ngram, self._after.get(ngram)))
                self._after[ngram] = end
            self._tokens.append(token)
            self._before.append(replaced)

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        while len(self._tokens) > length:
            self._tokens.pop()
            for ngram, place in self._before.pop():
                if place is None:
                    del self._after[ngram]
                else:
                    self._after[ngram] = place

    def find(self) -> Found:
        """What followed the longest suffix that occurred before, at its most recent occurrence."""
        context = self._tokens
        for length in range(min(self._lookup.max_match, len(context)), self._lookup.min_match - 1, -1):
            place = self._after.get(tuple(context[-length:]))
            if place is not None:
                return Found(self._continuation(place), self._match_length(place, length))
        return NOTHING

    def _continuation(self, place: int) -> tuple[int, ...]:
        """The tokens from ``place`` on; a copy that reaches the context's end goes on with what it has copied."""
        tokens = self._tokens[place : place + self._lookup.max_tokens]
        period = len(tokens)
        return tuple(tokens[index % period] for index in range(self._lookup.max_tokens))

    def _match_length(self, place: int, known: int) -> int:
        """For how many tokens backwards the context before ``place`` equals its end."""
        context, length = self._tokens, known
        most = min(place, _LONGEST_MATCH)
        while length < most and context[place - 1 - length] == context[-1 - length]:
            length += 1
        return length


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many equal tokens two sequences begin."""
    differing = (index for index, (ours, theirs) in enumerate(zip(first, second, strict=False)) if ours != theirs)
    return next(differing, min(len(first), len(second)))
