"""The raw record of one generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from selfspec_tune.costs import Counts

StopReason = Literal["eos", "length"]


@dataclass(slots=True)
class Generation:
    """Token ids and what producing them took; rates are derived from it later.

    ``accepted`` and ``drafted`` hold one count per draft-and-verify round (empty for
    plain decoding), ``sources`` who drafted in it (a `selfspec_tune.draft.Source`; empty where
    that is not known), ``passes`` the draft's passes through the model in it, ``guesses`` how many
    looked-up tokens these passes tried. Times are seconds
    of synchronised work; ``verify_seconds`` is the time in full-model forward passes after
    prefill, plain decode steps included. ``decode_seconds`` is everything after prefill,
    overhead included. ``prefilled`` tokens of the prompt were run: all but those that a cache held.
    ``first_tokens`` came out of the prefill: one, or more where drafts were verified in the same pass.
    """

    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    decode_seconds: float = 0.0
    stop_reason: StopReason = "length"
    first_tokens: int = 1
    sources: list[str] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    guesses: list[int] = field(default_factory=list)
    prefilled: int = 0

    @property
    def counts(self) -> Counts:
        """The rounds, as the cost model counts them."""
        return Counts(self.drafted, self.accepted, self.sources, self.passes, self.guesses)

    @property
    def total_seconds(self) -> float:
        """Prefill and decode together."""
        return self.prefill_seconds + self.decode_seconds
