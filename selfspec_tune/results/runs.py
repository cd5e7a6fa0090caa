"""Raw paired runs: what a measurement leaves behind. Times are seconds."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from selfspec_tune.costs import Counts
from selfspec_tune.results.record import Record

StopReason = Literal["eos", "length", "stop_string"]
Lossless = Literal["identical", "numerical_tie", "mismatch", "sampled"]


class ArmRun(Record):
    """One generation. ``num_tokens`` new tokens; ``first_tokens`` of them come out of the prefill.

    That is one, or more where a rival verifies its first drafts in the same pass (its prefill
    then holds their drafting). ``decode_seconds`` is everything after the prefill;
    ``draft_seconds`` and ``verify_seconds`` are parts of it, 0 where they were not timed apart.
    ``accepted`` and ``drafted`` count tokens per round (the token that verification itself adds
    is in neither), ``sources`` who drafted in each ("plain": nobody; empty where that is not
    known, as in older files), ``passes`` the draft's passes through the model in each (empty likewise),
    ``guesses`` the looked-up tokens that these passes tried (empty likewise); plain decoding has no rounds.
    """

    num_tokens: int = Field(ge=0)
    prefill_seconds: float = Field(ge=0)
    decode_seconds: float = Field(ge=0)
    draft_seconds: float = Field(default=0.0, ge=0)
    verify_seconds: float = Field(default=0.0, ge=0)
    accepted: list[int] = []
    drafted: list[int] = []
    sources: list[str] = []
    passes: list[int] = []
    guesses: list[int] = []
    stop_reason: StopReason = "length"
    first_tokens: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if len(self.accepted) != len(self.drafted):
            raise ValueError(f"{len(self.accepted)} accepted counts for {len(self.drafted)} drafted counts")
        if any(a > d for a, d in zip(self.accepted, self.drafted, strict=True)):
            raise ValueError("a round accepted more tokens than it drafted")
        by_round: dict[str, list[Any]] = {"sources": self.sources, "passes": self.passes, "guesses": self.guesses}
        for name, values in by_round.items():
            if values and len(values) != len(self.drafted):
                raise ValueError(f"{name} of {len(values)} rounds for {len(self.drafted)} rounds")
        return self

    @property
    def counts(self) -> Counts:
        """The rounds, as the cost model counts them."""
        return Counts(self.drafted, self.accepted, self.sources, self.passes, self.guesses)

    @property
    def total_seconds(self) -> float:
        """Prefill and decoding."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def decode_steps(self) -> int:
        """Tokens that decoding made: all but the first, which the prefill gives."""
        return max(self.num_tokens - self.first_tokens, 0)


class PairedRun(Record):
    """The same prompt decoded plainly and speculatively, one right after the other.

    ``order`` and ``baseline_order`` are the arms' positions in their block, ``prompt_tokens``
    the prompt's length; ``first_difference`` is the index of the first new token that
    differs, ``logit_gap`` the target's top-2 gap there. ``session`` numbers the process that
    measured the pair where a bench was resumed; both arms are always of one block of one session.
    ``point`` is the value of a sweep. ``degenerate``: whether the answer of either arm goes on in circles
    (`selfspec_tune.measure.degeneration`); None: ``too_short`` to tell, or nobody looked, as in older files.
    """

    method: str
    prompt_id: str
    prompt_hash: str
    task: str
    round: int
    order: int
    baseline_order: int
    prompt_tokens: int
    baseline: ArmRun
    candidate: ArmRun
    lossless: Lossless
    first_difference: int | None = None
    logit_gap: float | None = None
    session: int | None = None
    point: float | None = None
    degenerate: bool | None = None
    too_short: bool = False
