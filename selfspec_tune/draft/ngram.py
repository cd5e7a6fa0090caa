"""The n-gram lookup: what followed the context's last tokens when they occurred before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from selfspec_tune.checks import only_known, whole
from selfspec_tune.draft.source import NOTHING, Found
from selfspec_tune.errors import UsageError

_MOST_TOKENS = 1024
_BRIEF_TOKENS = 4
# How far back a match is followed to tell how long it is; the policy tells no longer ones apart.
_LONGEST_MATCH = 16
_UNWRITTEN = {"max_match": 4, "min_match": 2, "max_tokens": 10, "draft_tokens": 0}


@dataclass(frozen=True, slots=True)
class NgramLookup:
    """Look the last ``max_match`` … ``min_match`` tokens up in prompt and output, longest first; a `DraftSource`.

    Where they occurred before, up to ``max_tokens`` tokens that followed their most recent
    occurrence are drafted (prompt lookup decoding, Saxena 2023). That costs no forward pass.

    Where the model drafts instead, each of its passes tries up to ``draft_tokens`` of those tokens
    beside the last one: as many as it agrees with need no pass of their own.
    """

    name: ClassVar = "ngram"
    label: ClassVar = "lookup"
    title: ClassVar = "n-gram lookup"
    help: ClassVar = "Draft from the context first, where its last tokens occurred before."
    deed: ClassVar = "tokens that occurred before are looked up"
    style: ClassVar = "cyan"

    max_match: int = 8
    min_match: int = 1
    max_tokens: int = 24
    draft_tokens: int = 8

    def __post_init__(self) -> None:
        for name, least in (("max_match", 1), ("min_match", 1), ("max_tokens", 1), ("draft_tokens", 0)):
            whole(f"ngram.{name}", getattr(self, name), least, _MOST_TOKENS)
        if self.min_match > self.max_match:
            raise UsageError(
                f"An n-gram lookup of {self.min_match} to {self.max_match} tokens; expected min_match ≤ max_match."
            )

    def __str__(self) -> str:
        tried = f", {self.draft_tokens} in drafts" if self.draft_tokens else ""
        return f"n-gram {self.min_match}-{self.max_match}, {self.max_tokens} tokens{tried}"

    @property
    def alone(self) -> NgramLookup:
        return replace(self, draft_tokens=0)

    @property
    def brief(self) -> NgramLookup:
        return replace(self.alone, max_tokens=_BRIEF_TOKENS)

    def begin(self, context: Sequence[int]) -> NgramIndex:
        return NgramIndex(self, context)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> NgramLookup:
        """The inverse of `to_dict`; what a file leaves out is as it was when such files were written."""
        return cls(**{**_UNWRITTEN, **only_known("ngram", value, cls.__dataclass_fields__)})


class NgramIndex:
    """Every n-gram of the context with the place after its most recent occurrence; a `SourceState`.

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
        return len(self._tokens)

    def extend(self, tokens: Iterable[int]) -> None:
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
                match_length = self._match_length(place, length)
                return Found(self._continuation(place), match_length, self._lookup.name, self._lookup.draft_tokens)
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
