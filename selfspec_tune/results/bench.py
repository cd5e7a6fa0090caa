"""``bench.json`` and ``sweep.json``: figures of ways of decoding and the raw runs behind them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from selfspec_tune.checks import number, only_known
from selfspec_tune.draft.skip_set import MOST_LAYERS, SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.intervals import Interval, Verdict
from selfspec_tune.results.memory_limit import MemoryLimit
from selfspec_tune.results.record import Document, Record, check_provenance
from selfspec_tune.results.runs import PairedRun


def _interval(value: Any) -> Any:
    """The interval that an object of a file states. JSON has no infinity: a missing upper bound is written as null."""
    if not isinstance(value, dict):
        return value
    try:
        named = only_known("an interval", value, ("value", "low", "high"))
        is_open = "high" in named and named["high"] is None
        ends = {"high": math.inf} if is_open else {}
        for name in {"value", "low", "high"} - ends.keys():
            ends[name] = float(number(name, named.get(name), 0.0))
        return Interval(**ends)
    except UsageError as error:
        raise ValueError(str(error)) from error


Ratio = Annotated[Interval, BeforeValidator(_interval)]


class LosslessCount(Record):
    """How many runs gave the baseline's tokens, and how the others differed."""

    identical: int = 0
    numerical_ties: int = 0
    mismatches: int = 0
    sampled: int = 0


class TaskResult(Record):
    """A method's figures over some of its prompts: those of one task, or those whose answers do not degenerate.

    ``degenerate_share`` as in `MethodResult`.
    """

    num_prompts: int
    decode_speedup: Ratio | None = None
    end_to_end_speedup: Ratio | None = None
    acceptance_rate: float | None = None
    degenerate_share: float | None = None


class SkipLayers(Record):
    """Skipped 0-based layers, as written in files; `SkipSet` is the value to work with.

    It has no other fields: one that is not known may be a misspelt list, and would be taken for none.
    """

    attention: list[int] = Field(default=[], max_length=MOST_LAYERS)
    mlp: list[int] = Field(default=[], max_length=MOST_LAYERS)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, value: Any) -> Any:
        try:
            return only_known("it", value, cls.model_fields) if isinstance(value, dict) else value
        except UsageError as error:
            raise ValueError(str(error)) from error


class PositionCounts(Record):
    """Rounds by position in the draft, the first token's first.

    In so many a token was ``drafted`` there; in so many of these all before it were accepted, so that the verification
    ``reached`` it; and in so many it was ``accepted``.
    """

    drafted: list[int] = []
    reached: list[int] = []
    accepted: list[int] = []

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        lengths = {len(self.drafted), len(self.reached), len(self.accepted)}
        counts = zip(self.drafted, self.reached, self.accepted, strict=False)
        if len(lengths) > 1 or any(not 0 <= right <= reached <= drafted for drafted, reached, right in counts):
            raise ValueError("tokens that were drafted, reached and accepted at a position must not become more")
        return self


class MethodResult(Record):
    """What one way of decoding achieved.

    ``tokens_per_second`` counts new tokens over prefill and decoding together, ``decode_tokens_per_second`` those that
    decoding made over its time. ``of_memory_limit`` is the latter over what the memory allowed plain bfloat16 decoding
    of the same text in the same minutes (`MemoryLimit`); None: not known, as in older files.
    ``geometric_mean_speedup`` is of the prompts' end-to-end ratios. ``mean_accepted_tokens``
    is Spec-Bench's MAT, the bonus token included. ``draft_cost_fraction`` is the time of a
    drafted token, ``verify_cost_fraction`` that of a verification, each divided by the
    baseline's time for a decoded token. ``unavailable`` says why a method could not run on
    this model: it then has no runs and no figures. ``by_position``: what became of drafts token by token, None where
    nothing was drafted, and in older files. ``degenerate_share`` of the runs have answers that go on in circles
    (None: not known, as in older files, or where all are too short to tell), ``num_too_short`` are too short; where any
    degenerate, ``without_degenerate`` holds the figures without them, None where nothing is left.
    """

    name: str
    id: str
    description: str = ""
    skip: SkipLayers | None = None
    num_prompts: int
    num_runs: int
    tokens_per_second: float | None
    decode_tokens_per_second: float | None = None
    of_memory_limit: Ratio | None = None
    decode_speedup: Ratio | None = None
    end_to_end_speedup: Ratio | None = None
    geometric_mean_speedup: float | None = None
    acceptance_rate: float | None = None
    mean_accepted_tokens: float | None = None
    by_position: PositionCounts | None = None
    draft_cost_fraction: float | None = None
    verify_cost_fraction: float | None = None
    lossless: LosslessCount
    per_task: dict[str, TaskResult] = {}
    unavailable: str | None = None
    degenerate_share: float | None = None
    num_too_short: int = 0
    without_degenerate: TaskResult | None = None

    @property
    def has_degenerate(self) -> bool:
        """Whether some of its answers go on in circles."""
        return bool(self.degenerate_share)

    @property
    def sound_speedup(self) -> Interval | None:
        """End to end, by the prompts whose answers do not degenerate; None where there is none."""
        if not self.has_degenerate:
            return self.end_to_end_speedup
        return self.without_degenerate.end_to_end_speedup if self.without_degenerate else None

    @model_validator(mode="after")
    def _forbid_lossy_speedup(self) -> Self:
        speedups: list[Any] = [self.decode_speedup, self.end_to_end_speedup, self.geometric_mean_speedup]
        speedups.append(self.of_memory_limit)
        for task in [*self.per_task.values(), *([self.without_degenerate] if self.without_degenerate else [])]:
            speedups += [task.decode_speedup, task.end_to_end_speedup]
        if self.lossless.mismatches and any(speedup is not None for speedup in speedups):
            raise ValueError(f"{self.lossless.mismatches} runs were lossy, so no speedup may be stated")
        if self.unavailable and (self.num_runs or any(speedup is not None for speedup in speedups)):
            raise ValueError("a method that could not run has no runs and no speedup")
        return self


class NullRun(Record):
    """The baseline against itself: intervals that should hold 1.0."""

    end_to_end: Ratio
    decode: Ratio
    num_prompts: int


class ModelInfo(Record):
    """The model a file is about; ``fingerprint`` tells whether another one is the same.

    ``revision``: the commit on the hub that was loaded; None for models that lie elsewhere.
    """

    id: str
    fingerprint: str
    num_layers: int = Field(ge=1, le=MOST_LAYERS)
    name: str | None = None
    source: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    device: str | None = None
    parameters: int | None = None
    provenance: str | None = None
    revision: str | None = None


class BenchResult(Document):
    """``bench.json``: every method's figures and the raw runs they come from.

    ``a_a`` is the baseline against itself; ``baseline_vs_generate`` is total time of
    ``model.generate`` over ours, above 1 when our baseline is faster; ``in_sample`` says
    that prompts were used which the search had read; ``withheld_because`` why there is no verdict.
    ``memory_limit``: by the baseline's runs; None: not known, as in older files.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/bench"

    schema_name: Literal["selfspec-tune/bench"] = Field(default="selfspec-tune/bench", alias="schema")
    version: Literal[1] = 1
    model: ModelInfo
    verdict: Verdict | Literal["withheld"]
    methods: list[MethodResult]
    a_a: NullRun | None = None
    baseline_vs_generate: float | None = None
    memory_limit: MemoryLimit | None = None
    withheld_because: list[str] = []
    warnings: list[str] = []
    in_sample: bool = False
    split: str = "test"
    provenance: dict[str, Any] = {}
    runs: list[PairedRun] = []

    def check(self) -> None:
        """Raise `UsageError` where a method skips layers that the model lacks, or its provenance is none."""
        check_layers(self.model, self.methods)
        check_provenance(self.provenance)

    def method(self, method_id: str) -> MethodResult | None:
        """The method of that id, if it was measured."""
        return next((method for method in self.methods if method.id == method_id), None)


def check_layers(model: ModelInfo, methods: Iterable[MethodResult]) -> None:
    """Raise `UsageError` where a method skips layers that the model lacks."""
    for method in methods:
        if method.skip is not None:
            SkipSet(model.num_layers, tuple(method.skip.attention), tuple(method.skip.mlp))


class SweepPoint(Record):
    """A bench at one value; ``prompt_tokens`` is the mean over its prompts. The rest reads as in `BenchResult`."""

    value: float
    prompt_tokens: float
    verdict: Verdict | Literal["withheld"]
    withheld_because: list[str] = []
    methods: list[MethodResult]
    a_a: NullRun | None = None
    baseline_vs_generate: float | None = None
    memory_limit: MemoryLimit | None = None
    numeric_floor: float | None = None


class SweepResult(Document):
    """Points in rising order of their values, measured in one run with their blocks interleaved.

    ``description`` says what differs from point to point. ``runs`` carry their ``point``.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/sweep"

    schema_name: Literal["selfspec-tune/sweep"] = Field(default="selfspec-tune/sweep", alias="schema")
    version: Literal[1] = 1
    model: ModelInfo
    sweep: Literal["context", "temperature", "max-draft"]
    description: str
    points: list[SweepPoint]
    warnings: list[str] = []
    in_sample: bool = False
    split: str = "test"
    provenance: dict[str, Any] = {}
    runs: list[PairedRun] = []

    def check(self) -> None:
        """Raise `UsageError` where a method skips layers that the model lacks, or its provenance is none."""
        check_layers(self.model, (method for point in self.points for method in point.methods))
        check_provenance(self.provenance)
