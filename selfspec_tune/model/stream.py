"""An answer as it comes: from the engine's rounds to pieces of text that no later token changes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from inspect import GEN_RUNNING, getgeneratorstate

from selfspec_tune.draft import Source
from selfspec_tune.engine import Limits
from selfspec_tune.engine import RawGeneration as Record
from selfspec_tune.engine.decoding import RoundTokens
from selfspec_tune.errors import UsageError
from selfspec_tune.model.generation import FinishReason, Generation, Piece, RoundCounts, Sampling

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder puts for bytes that are no character yet


class TextStream:
    """The text of tokens, up to the first of the ``stop`` texts.

    ``decode``: the text of some tokens. Only the last few are decoded again for each push, so that a long answer costs
    no more per token than a short one. Held back are bytes that may become a character, and what may be
    the beginning of a stop text.

    >>> stream = TextStream(lambda tokens: bytes(tokens).decode(errors="replace"), stop=["END"])
    >>> stream.push(b"a caf\\xc3"), stream.push(b"\\xa9 E"), stream.push(b"ND b"), stream.stopped_by
    ('', 'a café ', '', 'END')
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []  # those that the text of new ones may depend on
        self._num_read, self._read = 0, ""  # of these whose text has been taken, and that text
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain now. Nothing more comes after a stop text."""
        if self.stopped_by is not None:
            return ""
        self._tokens += tokens
        text = self._decode(self._tokens)
        if text.endswith(_INCOMPLETE) or len(text) <= len(self._read):
            return ""
        self._held += text[len(self._read) :]
        # The next texts are decoded after these tokens: decoders treat a beginning otherwise than a middle.
        self._tokens = self._tokens[self._num_read :]
        self._num_read, self._read = len(self._tokens), self._decode(self._tokens)
        return self._released()

    def finish(self) -> str:
        """What is still held back when no more tokens come."""
        if self.stopped_by is not None:
            return ""
        self._held += self._decode(self._tokens)[len(self._read) :]
        released = self._released()
        rest = "" if self.stopped_by is not None else self._held
        self._held = ""
        return released + rest

    def _released(self) -> str:
        """What can be given of the text held, which is kept no longer."""
        found = [(place, text) for text in self._stop if (place := self._held.find(text)) >= 0]
        if found:
            place, self.stopped_by = min(found)
            released, self._held = self._held[:place], ""
            return released
        end = len(self._held) - max((_overlap(self._held, text) for text in self._stop), default=0)
        released, self._held = self._held[:end], self._held[end:]
        return released


def _overlap(text: str, stop: str) -> int:
    """With how many characters ``text`` ends that ``stop`` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class Stream:
    """Iterate for the pieces of an answer; `generation` is the answer so far, and at the end all of it.

    ``record`` is filled by ``rounds``; ``ended`` is called once the answer has ended, whole or not.
    """

    def __init__(
        self,
        rounds: Generator[RoundTokens],
        record: Record,
        text_of: Callable[[Sequence[int]], str],
        sampling: Sampling,
        limits: Limits,
        prompt_tokens: int,
        ended: Callable[[Generation], None],
    ) -> None:
        self._rounds = rounds
        self._record = record
        self._sampling = sampling
        self._limits = limits
        self._prompt_tokens = prompt_tokens
        self._ended = ended
        self._text = TextStream(text_of, sampling.stop)
        self._given = ""
        self._num_tokens = 0
        self._is_whole = False
        self._pieces = self._read()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        """End the answer here. Raises `UsageError` where another thread is reading it."""
        if getgeneratorstate(self._pieces) == GEN_RUNNING:
            raise UsageError(
                "The model is answering in another thread, and gives one answer at a time. Wait for that one, or load "
                "the model once for each thread."
            )
        self._pieces.close()

    def read(self) -> Generation:
        """Read what is left; the whole answer."""
        for _ in self:
            pass
        return self.generation

    @property
    def generation(self) -> Generation:
        """The answer as far as it has been read."""
        record = self._record
        return Generation(
            text=self._given,
            tokens=tuple(record.tokens[: self._num_tokens]),
            prompt_tokens=self._prompt_tokens,
            prefilled_tokens=record.prefilled,
            rounds=tuple(
                RoundCounts(one.source or Source.PLAIN, one.num_drafted, one.num_accepted) for one in record.rounds
            ),
            prefill_seconds=record.prefill_seconds,
            decode_seconds=record.decode_seconds,
            finish_reason=self._finish_reason,
            seed=self._sampling.seed or 0,
        )

    @property
    def _finish_reason(self) -> FinishReason:
        if self._text.stopped_by is not None:
            return "stop"
        if not self._is_whole:
            return "interrupted"
        is_cut = self._limits.max_new_tokens < self._sampling.max_new_tokens
        return "context" if self._record.stop_reason == "length" and is_cut else self._record.stop_reason

    def _read(self) -> Generator[Piece]:
        try:
            for given in self._rounds:
                yield from self._pieces_of(given)
                if self._text.stopped_by is not None:
                    break
            else:
                self._is_whole = True
            if rest := self._text.finish():
                self._given += rest
                yield Piece(rest)
        except GeneratorExit:  # between two rounds, so the cache is sound
            self._rounds.close()
            self._ended(self.generation)
            raise
        self._rounds.close()
        self._ended(self.generation)

    def _pieces_of(self, given: RoundTokens) -> Iterator[Piece]:
        """Of the accepted drafted tokens, with those rejected; then of the token that the whole model gave."""
        num_accepted = given.round.num_accepted
        accepted, own = given.tokens[:num_accepted], given.tokens[num_accepted:]
        rejected = tuple(given.drafted[num_accepted:])
        if accepted or rejected:
            yield self._piece_of(accepted, given.round.source or Source.PLAIN, rejected)
        if own and self._text.stopped_by is None:
            yield self._piece_of(own)

    def _piece_of(self, tokens: Sequence[int], source: str = Source.PLAIN, rejected: tuple[int, ...] = ()) -> Piece:
        """``tokens`` as far as no stop text ends the answer; one by one where one may come between two of them."""
        text, count = "", 0
        for group in [[token] for token in tokens] if self._sampling.stop else [tokens]:
            count += len(group)
            text += self._text.push([token for token in group if token not in self._limits.eos_token_ids])
            if self._text.stopped_by is not None:
                break
        self._num_tokens += count
        self._given += text
        return Piece(text, tuple(tokens[:count]), source, rejected)
