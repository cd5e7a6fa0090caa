"""Drafting from the context alone: what a source of such drafts is, and what it is at work within one generation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from selfspec_tune.draft.rounds import Source


class Found(NamedTuple):
    """``tokens`` that may follow the context, by the ``source`` of that name; a draft pass may try ``draft_tokens``.

    ``match_length``: how many of the context's last tokens speak for them; a policy that does not learn what such
    tokens are worth goes by this alone.
    """

    tokens: tuple[int, ...] = ()
    match_length: int = 0
    source: str = Source.PLAIN
    draft_tokens: int = 0


NOTHING = Found()


class SourceState(Protocol):
    """A source within one generation: it knows the context, and says at once what may follow it."""

    @property
    def length(self) -> int:
        """Tokens of the context."""

    def extend(self, tokens: Iterable[int]) -> None:
        """Add ``tokens`` to the end of the context."""

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""

    def find(self) -> Found:
        """What may follow the context; `NOTHING` where the source knows of nothing."""


class DraftSource(Protocol):
    """How tokens are drafted from the context, at no forward pass: settings, immutable and comparable.

    What it finds is drafted as it is; where the model drafts instead, its passes may try these tokens beside the
    last one: as many as it agrees with need no pass of their own. All its fields have defaults. `SOURCES` in
    `selfspec_tune.draft.sources` has those that are known.

    Attributes:
        name: in files, in rounds, and of its option.
        label: a word for people, as in "lookup 12/15" or "the draft without its lookup".
        title: the same where nothing around it says what is meant.
        help: what its option does.
        deed: what becomes of tokens, as a sentence's beginning.
        style: rich's style of tokens that it drafted.
        max_tokens: most tokens that it finds.
        draft_tokens: most of these that a pass of the draft tries.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    title: ClassVar[str]
    help: ClassVar[str]
    deed: ClassVar[str]
    style: ClassVar[str]

    @property
    def max_tokens(self) -> int: ...

    @property
    def draft_tokens(self) -> int: ...

    def __str__(self) -> str:
        """Its settings in a few words that no other settings share."""

    @property
    def alone(self) -> Self:
        """The same where the model drafts nothing, so that drafts which do the same are equal."""

    @property
    def brief(self) -> Self:
        """The same with so few tokens that they cost next to nothing to verify."""

    def begin(self, context: Sequence[int]) -> SourceState:
        """The source at the beginning of a generation."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; missing fields take defaults. Raises `UsageError`."""


class _Several:
    """Sources side by side: the first one that finds anything is asked."""

    def __init__(self, states: Sequence[SourceState]) -> None:
        self._states = states

    @property
    def length(self) -> int:
        return self._states[0].length

    def extend(self, tokens: Iterable[int]) -> None:
        added = list(tokens)
        for state in self._states:
            state.extend(added)

    def rewind(self, length: int) -> None:
        for state in self._states:
            state.rewind(length)

    def find(self) -> Found:
        return next((found for state in self._states if (found := state.find()).tokens), NOTHING)


def begin(sources: Sequence[DraftSource], context: Sequence[int]) -> SourceState | None:
    """All of ``sources`` at the beginning of a generation, as one; None without any."""
    states = [source.begin(context) for source in sources]
    return _Several(states) if len(states) > 1 else next(iter(states), None)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many equal tokens two sequences begin."""
    differing = (index for index, (ours, theirs) in enumerate(zip(first, second, strict=False)) if ours != theirs)
    return next(differing, min(len(first), len(second)))
