"""How an answer is decoded, checked before a model is loaded, and what that gives: text, and what it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from secrets import randbelow
from typing import Any, Literal

from selfspec_tune.checks import check_fields, check_kind, check_number, check_option_names
from selfspec_tune.draft import Source
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import LARGEST_SEED, Sampling, SamplingValues

FinishReason = Literal["eos", "length", "context", "stop", "interrupted"]


class SamplingOptions(SamplingValues, total=False):
    """The keywords of `Model.generate`, `Model.stream` and `Chat.send`; see `AnswerOptions` for what they mean."""

    max_new_tokens: int
    seed: int | None
    stop: str | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions(Sampling):
    """How an answer's tokens are drawn (see `Sampling`), and where it ends.

    Attributes:
        max_new_tokens: most tokens of the answer; the model's context may end it sooner.
        seed: of the draws; None: another one each time.
        stop: texts before which the answer ends, none of which is ever streamed. The first one is the one whose last
            character comes first; of two that end together, the longer one.
    """

    max_new_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        Sampling.__post_init__(self)
        check_number("max_new_tokens", self.max_new_tokens, 1, math.inf, "a whole number from 1 on", whole=True)
        if self.seed is not None:
            check_number("seed", self.seed, 0, LARGEST_SEED, f"a whole number from 0 to {LARGEST_SEED}", whole=True)
        if not all(self.stop):
            raise UsageError("`stop` '': expected texts of one character or more.")

    def seeded(self) -> AnswerOptions:
        """The same with a seed, drawn where there is none."""
        return self if self.seed is not None else replace(self, seed=randbelow(LARGEST_SEED + 1))

    @classmethod
    def of(cls, options: SamplingOptions) -> AnswerOptions:
        """Checked. Raises `UsageError` for an option that is not known and for a value that means nothing.

        >>> AnswerOptions.of({"temperature": 0.7, "stop": "\\n"}).stop
        ('\\n',)
        """
        given: dict[str, Any] = dict(options)
        check_option_names("an answer", given, cls.__dataclass_fields__)
        stop = given.get("stop", ())
        check_kind("stop", stop, str | Sequence[str] | None)
        return cls(**given | {"stop": (stop,) if isinstance(stop, str) else tuple(stop or ())})


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of an answer as it comes, which may be empty where it is still held back.

    Attributes:
        text: to be printed after the pieces before it.
        tokens: ids of the tokens that came, whose text may follow in a later piece.
        source: who drafted them; ``plain`` where the whole model gave them itself.
        rejected: ids of the tokens that were drafted to follow ``tokens``, and were not accepted.
    """

    text: str
    tokens: tuple[int, ...] = ()
    source: str = Source.PLAIN
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RoundCounts:
    """One round of drafting and verification: who drafted, how many tokens, and how many were accepted."""

    source: str
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer.

    Attributes:
        text: without special tokens, and without the stop text that ended it.
        tokens: ids, the end-of-sequence token or the tokens of a stop text included.
        prompt_tokens: how many tokens the prompt has.
        prefilled_tokens: how many of these were run; a conversation's earlier ones are cached.
        rounds: of drafting and verification, in order; none where it was decoded plainly.
        prefill_seconds: of the prompt, up to and with the first token.
        decode_seconds: of all other tokens, the reader's own time left out.
        finish_reason: ``eos``, ``length`` (max_new_tokens), ``context`` (the model's is full), ``stop`` (a stop text)
            or ``interrupted`` (the stream was closed).
        seed: that gives the same answer again.
        plain: the same prompt decoded plainly beside it, where asked for.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    prefilled_tokens: int
    rounds: tuple[RoundCounts, ...]
    prefill_seconds: float
    decode_seconds: float
    finish_reason: FinishReason
    seed: int
    plain: Generation | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """Prefill and decode together."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def drafted(self) -> int:
        """Tokens drafted."""
        return sum(one.drafted for one in self.rounds)

    @property
    def accepted(self) -> int:
        """Drafted tokens that verification accepted."""
        return sum(one.accepted for one in self.rounds)

    @property
    def by_source(self) -> dict[str, RoundCounts]:
        """Tokens drafted and accepted by each source that drafted any."""
        found: dict[str, RoundCounts] = {}
        for one in self.rounds:
            if one.drafted:
                sum_ = found.get(one.source, RoundCounts(one.source, 0, 0))
                found[one.source] = RoundCounts(one.source, sum_.drafted + one.drafted, sum_.accepted + one.accepted)
        return found

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first, which the prefill gives; None where there is no other."""
        rest = len(self.tokens) - 1
        return rest / self.decode_seconds if rest > 0 and self.decode_seconds > 0 else None

    @property
    def speedup(self) -> float | None:
        """End to end: plain decoding's seconds a token over this one's. None where nothing was decoded plainly."""
        if self.plain is None or not self.tokens or not self.plain.tokens:
            return None
        return (self.plain.seconds / len(self.plain.tokens)) / (self.seconds / len(self.tokens))

    @property
    def decode_speedup(self) -> float | None:
        """The same after the prefill."""
        theirs = None if self.plain is None else self.plain.tokens_per_second
        ours = self.tokens_per_second
        return None if theirs is None or ours is None else ours / theirs

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "prefilled_tokens": self.prefilled_tokens,
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "tokens_per_second": self.tokens_per_second,
            "drafted": self.drafted,
            "accepted": self.accepted,
            "rounds": [[one.source, one.drafted, one.accepted] for one in self.rounds],
            "seed": self.seed,
            **self._compared(),
        }

    def _compared(self) -> dict[str, Any]:
        if self.plain is None:
            return {}
        ratios = {"speedup": self.speedup, "decode_speedup": self.decode_speedup}
        return {**ratios, "same_text": self.text == self.plain.text, "plain": self.plain.to_dict()}
