"""Raw paired runs, times in seconds, and what the logs that keep such runs share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import Field, PlainSerializer, SerializerFunctionWrapHandler, model_serializer, model_validator

from selfspec_tune.checks import shown
from selfspec_tune.draft import Round
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.files import short_hash, storage_error
from selfspec_tune.results.record import Record

StopReason = Literal["eos", "length", "stop_string"]
Lossless = Literal["identical", "numerical_tie", "mismatch", "sampled"]
WAYS_OUT = "Give the same options to resume it, `fresh` to measure again (the old runs are kept), or another `out`."


class RoundColumns(Record):
    """Rounds as files keep them: a list for each field of `Round`, empty where it is not known."""

    accepted: list[int] = []
    drafted: list[int] = []
    sources: list[str] = []
    passes: list[int] = []
    guesses: list[int] = []

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.accepted) != len(self.drafted):
            raise ValueError(f"{len(self.accepted)} accepted counts for {len(self.drafted)} drafted counts")
        by_round: dict[str, list[Any]] = {"sources": self.sources, "passes": self.passes, "guesses": self.guesses}
        for name, values in by_round.items():
            if values and len(values) != len(self.drafted):
                raise ValueError(f"{name} of {len(values)} rounds for {len(self.drafted)} rounds")
        return self

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The rounds in order."""
        unknown = [None] * len(self.drafted)
        known = (values or unknown for values in (self.sources, self.passes, self.guesses))
        return tuple(map(Round, self.drafted, self.accepted, *known))


def _columns(rounds: Sequence[Round]) -> dict[str, list[Any]]:
    """The fields of a `RoundColumns`."""
    known: dict[str, list[Any]] = {
        "sources": [None if one.source is None else str(one.source) for one in rounds],
        "passes": [one.num_passes for one in rounds],
        "guesses": [one.num_guesses for one in rounds],
    }
    return {
        "accepted": [one.num_accepted for one in rounds],
        "drafted": [one.num_drafted for one in rounds],
        **{name: [] if None in values else values for name, values in known.items()},
    }


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


def first_difference(recorded: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> str | None:
    """``dtype was float32, is bfloat16``: the first entry in which two records differ, None where they agree."""
    for name in {**asked, **recorded}:
        old, new = recorded.get(name), asked.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found = first_difference(old, new, f"{prefix}{name} ")
            if found:
                return found
        elif old != new:
            return f"{prefix}{name} was {_shown(old)}, is {_shown(new)}"
    return None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        text = ", ".join(map(str, value))
        return text if len(value) <= 8 and len(text) <= 60 else f"{len(value)} ({short_hash(text)[:8]})"
    return "none" if value is None else str(value)


def put_aside(path: Path) -> Path:
    """Rename the log to the first free ``NAME.1``, ``NAME.2``, …; nothing measured is ever lost."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    try:
        return path.rename(aside)
    except OSError as error:
        raise storage_error(path, error) from error


@contextmanager
def owned(path: Path, owner: str = "bench") -> Iterator[None]:
    """Within it no other ``owner`` writes to the log. Raises `UsageError` where one does already, `StorageError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(path.with_name(f".{path.name}.lock")))
        lock.acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{path} is in use by another {owner}. Wait for it, or give another `out`.") from None
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def heading_of(rows: Sequence[Any], path: Path, schema: str, version: int) -> dict[str, Any] | None:
    """The heading of a log's rows, None of an empty one. Raises `FileFormatError`."""
    if not rows:
        return None
    heading = rows[0]
    if not isinstance(heading, dict) or heading.get("schema") != schema:
        raise FileFormatError(f"{path} is no log of a bench (expected schema {schema} in its first line). {WAYS_OUT}")
    if type(heading.get("version")) is not int or heading["version"] != version:
        raise FileFormatError(
            f"{path} is version {shown(heading.get('version'))} of {schema}; this program reads {version}. "
            "Update selfspec-tune, or give another `out`."
        )
    if not isinstance(heading.get("measurement"), dict):
        raise FileFormatError(f"{path} does not say in its first line what it measured. {WAYS_OUT}")
    return heading
