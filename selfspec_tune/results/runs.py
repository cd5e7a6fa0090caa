"""Raw paired runs, times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, SerializerFunctionWrapHandler, model_serializer, model_validator

from selfspec_tune.draft import Certainty, Round, Source
from selfspec_tune.draft.rounds import MOST_MARGIN
from selfspec_tune.results.record import Record

StopReason = Literal["eos", "length", "stop_string"]
Lossless = Literal["identical", "numerical_tie", "mismatch", "sampled"]
_MatchLength = Annotated[int, Field(ge=0)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Margin = Annotated[float, Field(ge=0, le=MOST_MARGIN)]
_Entropy = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RoundColumns(Record):
    """Rounds as files keep them: a list for each field of `Round`, empty where it is not known.

    The last three have a number for each token that the model drafted, the others one for each round.
    """

    accepted: list[int] = []
    drafted: list[int] = []
    sources: list[str] = []
    passes: list[int] = []
    guesses: list[int] = []
    match_lengths: list[_MatchLength] = []
    confidences: list[_Share] = []
    margins: list[_Margin] = []
    entropies: list[_Entropy] = []

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.accepted) != len(self.drafted):
            raise ValueError(f"{len(self.accepted)} accepted counts for {len(self.drafted)} drafted counts")
        for name in ("sources", "passes", "guesses", "match_lengths"):
            values = getattr(self, name)
            if values and len(values) != len(self.drafted):
                raise ValueError(f"{name} of {len(values)} rounds for {len(self.drafted)} rounds")
        tokens = sum(self._drafted_by_model)
        if any(len(values) != tokens for values in self._certainties) and any(self._certainties):
            counts = ", ".join(str(len(values)) for values in self._certainties)
            raise ValueError(f"{counts} confidences, margins and entropies for {tokens} tokens that the model drafted")
        return self

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds in order."""
        unknown = [None] * len(self.drafted)
        known = (values or unknown for values in (self.sources, self.passes, self.guesses))
        certainties = map(Certainty, *self._certainties)
        of_round = [tuple(islice(certainties, number)) for number in self._drafted_by_model]
        match_lengths = self.match_lengths or [0] * len(self.drafted)
        return tuple(map(Round, self.drafted, self.accepted, *known, of_round, match_lengths))

    @property
    def _certainties(self) -> tuple[list[float], list[float], list[float]]:
        return self.confidences, self.margins, self.entropies

    @property
    def _drafted_by_model(self) -> list[int]:
        """Tokens of each round that the model drafted."""
        sources = self.sources or [""] * len(self.drafted)
        return [number * (by == Source.MODEL) for number, by in zip(self.drafted, sources, strict=True)]


def _columns(rounds: Sequence[Round]) -> dict[str, list[Any]]:
    """The fields of a `RoundColumns`."""
    known: dict[str, list[Any]] = {
        "sources": [None if one.source is None else str(one.source) for one in rounds],
        "passes": [one.num_passes for one in rounds],
        "guesses": [one.num_guesses for one in rounds],
    }
    columns = {
        "accepted": [one.num_accepted for one in rounds],
        "drafted": [one.num_drafted for one in rounds],
        **{name: [] if None in values else values for name, values in known.items()},
    }
    if any(one.match_length for one in rounds):
        columns["match_lengths"] = [one.match_length for one in rounds]
    by_model = [one for one in rounds if one.source == Source.MODEL]
    if by_model and all(len(one.certainties) == one.num_drafted for one in by_model):
        certainties = [certainty for one in by_model for certainty in one.certainties]
        columns["confidences"] = [certainty.confidence for certainty in certainties]
        columns["margins"] = [certainty.margin for certainty in certainties]
        columns["entropies"] = [certainty.entropy for certainty in certainties]
    return columns


class ArmRun(Record):
    """One generation. ``num_tokens`` new tokens; ``first_tokens`` of them come out of the prefill.

    That is one, or more where a rival verifies its first drafts in the same pass (its prefill
    then holds their drafting). ``decode_seconds`` is everything after the prefill;
    ``draft_seconds`` and ``verify_seconds`` are parts of it, 0 where they were not timed apart.
    Plain decoding has no ``rounds``; in files their `RoundColumns` stand in this record.
    """

    num_tokens: int = Field(ge=0)
    prefill_seconds: float = Field(ge=0)
    decode_seconds: float = Field(ge=0)
    draft_seconds: float = Field(default=0.0, ge=0)
    verify_seconds: float = Field(default=0.0, ge=0)
    rounds: Annotated[tuple[Round, ...], PlainSerializer(_columns)] = ()
    stop_reason: StopReason = "length"
    first_tokens: int = Field(default=1, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _read_columns(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        columns = {name: value[name] for name in RoundColumns.model_fields if name in value}
        if not columns:
            return value
        rest = {name: entry for name, entry in value.items() if name not in columns}
        return rest | {"rounds": RoundColumns.model_validate(columns, strict=True).rounds}

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if any(one.num_accepted > one.num_drafted for one in self.rounds):
            raise ValueError("a round accepted more tokens than it drafted")
        return self

    @model_serializer(mode="wrap")
    def _write_columns(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for name, value in handler(self).items():
            written |= value if name == "rounds" else {name: value}
        return written

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
    ``plain_bytes``: what plain decoding of the pair's text reads for a token, were the model held in bfloat16;
    ``memory_bytes_per_second``: what the memory delivered before and after the block. None: not known.
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
    plain_bytes: float | None = Field(default=None, gt=0)
    memory_bytes_per_second: float | None = Field(default=None, gt=0)

    @property
    def limit_seconds(self) -> float | None:
        """Seconds that the memory needed for a token of plain bfloat16 decoding; None where that is not known."""
        if self.plain_bytes is None or self.memory_bytes_per_second is None:
            return None
        return self.plain_bytes / self.memory_bytes_per_second
