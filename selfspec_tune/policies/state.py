"""The decisions that decoding asks of a policy, round by round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from selfspec_tune.draft import Source


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round drafts: from which source, and at most how many tokens (none when plain)."""

    source: Source
    num_tokens: int = 0


PLAIN = Plan(Source.PLAIN)


class PolicyState(Protocol):
    """A policy within one generation.

    It sees only the probabilities of drafted tokens, what the lookup found, and what was
    accepted before; every drafted token is verified. So it may decide as it likes: the
    output stays exact.
    """

    needs_probability: bool

    def begin(self, room: int, num_found: int = 0, match_length: int = 0) -> Plan:
        """Plan a round that may draft up to ``room`` tokens.

        The lookup found ``num_found`` tokens after a match of ``match_length``.
        """

    def wants_more(self, num_drafted: int, probability: float, num_ahead: int = 0) -> bool:
        """Whether the model should draft on after ``num_drafted`` tokens, the last one at ``probability``.

        ``num_ahead`` further tokens are known already, from the same pass.
        """

    def num_guesses(self, num_found: int, match_length: int) -> int:
        """How many of ``num_found`` tokens, looked up after a match of ``match_length``, a draft pass should try."""

    def update(
        self, accepted: int, drafted: int, agreed: int = 0, num_passes: int | None = None, num_guesses: int = 0
    ) -> None:
        """Learn that the verification accepted ``accepted`` of the round's ``drafted`` tokens.

        ``num_passes`` of the draft made them (default: one each, where the model drafted), which
        tried ``num_guesses`` looked-up tokens.

        ``agreed``: how many of the tokens that the lookup found, taken or not, were those
        that the round gave (its accepted ones and one more), up to the first difference.
        """
