"""Rounds of drafting and verification: the record of one, and what follows from several in pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp
from typing import NamedTuple

MOST_MARGIN = 99.0  # of two logits, and what stands where no second token is left


class Source(StrEnum):
    """Who drafted the tokens of a round: nobody in a plain one, or the model; else a `DraftSource`, by its ``name``."""

    PLAIN = "plain"
    MODEL = "model"


class Certainty(NamedTuple):
    """How sure a draft was of a token, by the distribution that it took it from.

    That is the softmax of its logits; where it samples, what temperature, top-k, top-p and min-p leave of it.

    Attributes:
        confidence: the token's probability.
        margin: the difference of the two largest logits: the logarithm of the ratio of the two largest probabilities.
            At most `MOST_MARGIN`.
        entropy: of the distribution, in nats.
    """

    confidence: float
    margin: float
    entropy: float

    @property
    def lead(self) -> float:
        """The most probable token's share of its own probability and of that of the second: 0.5 where both are equal.

        A token that the draft finds most probable is accepted where the model puts the same one first. Its lead tells
        that better than its confidence, from which many improbable tokens take away too.
        """
        return 1.0 / (1.0 + exp(-self.margin))

    @property
    def rounded(self) -> Certainty:
        """To the digits that records keep: four decimals, of the margin two."""
        return Certainty(round(self.confidence, 4), round(self.margin, 2), round(self.entropy, 4))


UNSURE = Certainty(0.0, 0.0, 0.0)  # of a draft that overflows


@dataclass(frozen=True, slots=True)
class Round:
    """One round: tokens are drafted, and the whole model verifies them and adds one more.

    What None stands for is not known, as of rivals and in older files.

    Attributes:
        num_drafted: tokens that were drafted.
        num_accepted: how many of them, from the first, the verification accepted.
        source: who drafted; a `Source` or the name of a `DraftSource`, or another name where a file has one.
        num_passes: the draft's passes through the model; tokens that a source found take none.
        num_guesses: tokens that a source found and these passes tried.
        certainties: one for each drafted token of the model's, rounded; a guess that a pass agreed with is one of them.
        match_length: of a source's tokens, how many of the context's last tokens spoke for them; 0 of any others.
    """

    num_drafted: int = 0
    num_accepted: int = 0
    source: str | None = None
    num_passes: int | None = None
    num_guesses: int | None = None
    certainties: tuple[Certainty, ...] = ()
    match_length: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that it gave: those accepted, and one more."""
        return self.num_accepted + 1

    @property
    def draft_passes(self) -> int:
        """``num_passes``; where they are not known one for each token, unless another than the model drafted."""
        if self.num_passes is not None:
            return self.num_passes
        return self.num_drafted if self.source in (None, Source.MODEL) else 0


PLAIN_ROUND = Round(source=Source.PLAIN, num_passes=0, num_guesses=0)


def num_drafted(rounds: Sequence[Round]) -> int:
    """Tokens drafted in all."""
    return sum(one.num_drafted for one in rounds)


def num_accepted(rounds: Sequence[Round]) -> int:
    """Drafted tokens that were accepted."""
    return sum(one.num_accepted for one in rounds)


def num_tokens(rounds: Sequence[Round]) -> int:
    """Tokens that the rounds gave: the accepted ones, and one more each."""
    return num_accepted(rounds) + len(rounds)


def acceptance_rate(rounds: Sequence[Round]) -> float | None:
    """Accepted over drafted tokens, None if nothing was drafted."""
    drafted = num_drafted(rounds)
    return num_accepted(rounds) / drafted if drafted else None


def mean_accepted_tokens(rounds: Sequence[Round]) -> float | None:
    """Spec-Bench's MAT: mean over rounds of the accepted tokens and the bonus token; None without a round."""
    return num_tokens(rounds) / len(rounds) if rounds else None
