"""An answer as it comes: from the engine's rounds to pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

from selfspec_tune.draft import Source
from selfspec_tune.engine import Generation as Record
from selfspec_tune.engine import Limits
from selfspec_tune.engine.decoding import Round
from selfspec_tune.model.generation import FinishReason, Generation, Piece, RoundCounts
from selfspec_tune.model.options import Sampling
from selfspec_tune.model.text import TextStream


class Stream:
    """Iterate for the pieces of an answer; `generation` is the answer so far, and at the end all of it.

    ``record`` is filled by ``rounds``; ``ended`` is called once the answer has ended, whole or not.
    """

    def __init__(
        self,
        rounds: Generator[Round],
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
        """End the answer here."""
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
        counts = zip(record.sources, record.drafted, record.accepted, strict=True)
        return Generation(
            text=self._given,
            tokens=tuple(record.tokens[: self._num_tokens]),
            prompt_tokens=self._prompt_tokens,
            prefilled_tokens=record.prefilled,
            rounds=tuple(RoundCounts(Source(source), drafted, accepted) for source, drafted, accepted in counts),
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
            for round_ in self._rounds:
                yield from self._pieces_of(round_)
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

    def _pieces_of(self, round_: Round) -> Iterator[Piece]:
        """Of the accepted drafted tokens, with those rejected; then of the token that the whole model gave."""
        accepted, own = round_.tokens[: round_.num_accepted], round_.tokens[round_.num_accepted :]
        rejected = tuple(round_.drafted[round_.num_accepted :])
        if accepted or rejected:
            yield self._piece_of(accepted, round_.source, rejected)
        if own and self._text.stopped_by is None:
            yield self._piece_of(own)

    def _piece_of(self, tokens: Sequence[int], source: Source = Source.PLAIN, rejected: tuple[int, ...] = ()) -> Piece:
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
