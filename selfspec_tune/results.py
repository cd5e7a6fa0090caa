"""The records that measuring leaves behind and the files that keep them.

Every file states its schema and version. Reading refuses another schema or a newer version
with `FileFormatError`; unknown fields of the same version are kept. Times are seconds. A
method whose output was not lossless cannot carry a speedup: `MethodResult` forbids it.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from typing import Annotated, Any, ClassVar, Literal, Self

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from selfspec_tune import files
from selfspec_tune.errors import FileFormatError
from selfspec_tune.skip_set import SkipSet
from selfspec_tune.statistics import Interval, Verdict

Path = str | os.PathLike[str]
StopReason = Literal["eos", "length", "stop_string"]
Lossless = Literal["identical", "numerical_tie", "mismatch", "sampled"]


def _unbounded_when_null(value: Any) -> Any:
    """JSON has no infinity: an interval's missing upper bound is written as null."""
    if isinstance(value, dict) and value.get("high", 0.0) is None:
        return {**value, "high": math.inf}
    return value


Ratio = Annotated[Interval, BeforeValidator(_unbounded_when_null)]


class Record(BaseModel):
    """Base of every record: immutable, fields it does not know are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as in the files."""
        plain: dict[str, Any] = json.loads(self.model_dump_json(by_alias=True))
        return plain


class ArmRun(Record):
    """One generation. ``num_tokens`` new tokens; the first of them comes out of the prefill.

    ``decode_seconds`` is everything after the prefill; ``draft_seconds`` and
    ``verify_seconds`` are parts of it. ``accepted`` and ``drafted`` count tokens per round
    (the token that verification itself adds is in neither), ``sources`` who drafted in each
    ("plain": nobody; empty in older files); plain decoding has no rounds.
    """

    num_tokens: int = Field(ge=0)
    prefill_seconds: float = Field(ge=0)
    decode_seconds: float = Field(ge=0)
    draft_seconds: float = Field(default=0.0, ge=0)
    verify_seconds: float = Field(default=0.0, ge=0)
    accepted: list[int] = []
    drafted: list[int] = []
    sources: list[str] = []
    stop_reason: StopReason = "length"

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if len(self.accepted) != len(self.drafted):
            raise ValueError(f"{len(self.accepted)} accepted counts for {len(self.drafted)} drafted counts")
        if any(a > d for a, d in zip(self.accepted, self.drafted, strict=True)):
            raise ValueError("a round accepted more tokens than it drafted")
        if self.sources and len(self.sources) != len(self.drafted):
            raise ValueError(f"{len(self.sources)} sources for {len(self.drafted)} rounds")
        return self

    @property
    def total_seconds(self) -> float:
        """Prefill and decoding."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def decode_steps(self) -> int:
        """Tokens that decoding made: all but the first, which the prefill gives."""
        return max(self.num_tokens - 1, 0)


class PairedRun(Record):
    """The same prompt decoded plainly and speculatively, one right after the other.

    ``order`` and ``baseline_order`` are the arms' positions in their block, ``prompt_tokens``
    the prompt's length; ``first_difference`` is the index of the first new token that
    differs, ``logit_gap`` the target's top-2 gap there.
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


class LosslessCount(Record):
    """How many runs gave the baseline's tokens, and how the others differed."""

    identical: int = 0
    numerical_ties: int = 0
    mismatches: int = 0
    sampled: int = 0


class TaskResult(Record):
    """A method's figures over the prompts of one task."""

    num_prompts: int
    decode_speedup: Ratio | None = None
    end_to_end_speedup: Ratio | None = None
    acceptance_rate: float | None = None


class SkipLayers(Record):
    """Skipped 0-based layers, as written in files; `SkipSet` is the value to work with."""

    attention: list[int] = []
    mlp: list[int] = []


class MethodResult(Record):
    """What one way of decoding achieved.

    ``tokens_per_second`` counts new tokens over prefill and decoding together.
    ``geometric_mean_speedup`` is of the prompts' end-to-end ratios. ``mean_accepted_tokens``
    is Spec-Bench's MAT, the bonus token included. ``draft_cost_fraction`` is the time of a
    drafted token, ``verify_cost_fraction`` that of a verification, each divided by the
    baseline's time for a decoded token.
    """

    name: str
    id: str
    description: str = ""
    skip: SkipLayers | None = None
    num_prompts: int
    num_runs: int
    tokens_per_second: float
    decode_speedup: Ratio | None = None
    end_to_end_speedup: Ratio | None = None
    geometric_mean_speedup: float | None = None
    acceptance_rate: float | None = None
    mean_accepted_tokens: float | None = None
    draft_cost_fraction: float | None = None
    verify_cost_fraction: float | None = None
    lossless: LosslessCount
    per_task: dict[str, TaskResult] = {}

    @model_validator(mode="after")
    def _forbid_lossy_speedup(self) -> Self:
        speedups: list[Any] = [self.decode_speedup, self.end_to_end_speedup, self.geometric_mean_speedup]
        for task in self.per_task.values():
            speedups += [task.decode_speedup, task.end_to_end_speedup]
        if self.lossless.mismatches and any(speedup is not None for speedup in speedups):
            raise ValueError(f"{self.lossless.mismatches} runs were lossy, so no speedup may be stated")
        return self


class NullRun(Record):
    """The baseline against itself: intervals that should hold 1.0."""

    end_to_end: Ratio
    decode: Ratio
    num_prompts: int


class ModelInfo(Record):
    """The model a file is about; ``fingerprint`` tells whether another one is the same."""

    id: str
    fingerprint: str
    num_layers: int
    name: str | None = None
    source: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    device: str | None = None
    parameters: int | None = None
    provenance: str | None = None


class Document(Record):
    """A record that is a JSON file of its own, with ``schema`` and ``version`` in front."""

    SCHEMA: ClassVar[str]
    VERSION: ClassVar[int] = 1

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises `FileFormatError`: missing, corrupt, other schema, newer version."""
        return cls.from_dict(files.read_json(path), origin=os.fspath(path))

    @classmethod
    def from_dict(cls, value: Any, *, origin: str) -> Self:
        """Validate a file's value; ``origin`` names it in errors."""
        _check_schema(value, cls.SCHEMA, cls.VERSION, origin)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise FileFormatError(f"{origin} does not fit {cls.SCHEMA}: {_first_problem(error)}.") from error

    def save(self, path: Path) -> None:
        """Write the file atomically. Raises `StorageError`."""
        files.write_json_atomic(path, self.to_dict())


class BenchResult(Document):
    """``bench.json``: every method's figures and the raw runs they come from.

    ``a_a`` is the baseline against itself; ``baseline_vs_generate`` is total time of
    ``model.generate`` over ours, above 1 when our baseline is faster; ``in_sample`` says
    that prompts were used which the search had read; ``withheld_because`` why there is no verdict.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/bench"

    schema_name: Literal["selfspec-tune/bench"] = Field(default="selfspec-tune/bench", alias="schema")
    version: Literal[1] = 1
    model: ModelInfo
    verdict: Verdict | Literal["withheld"]
    methods: list[MethodResult]
    a_a: NullRun | None = None
    baseline_vs_generate: float | None = None
    withheld_because: list[str] = []
    warnings: list[str] = []
    in_sample: bool = False
    split: str = "test"
    provenance: dict[str, Any] = {}
    runs: list[PairedRun] = []

    def method(self, method_id: str) -> MethodResult | None:
        """The method of that id, if it was measured."""
        return next((method for method in self.methods if method.id == method_id), None)


class DraftSettings(Record):
    """How the skip set drafts, in the words of `selfspec_tune.draft.Draft.to_dict`."""

    policy: Literal["fixed", "threshold", "adaptive", "cost-aware"]
    max_draft_tokens: int
    exit_threshold: float
    precision: str | dict[str, Any] = "same"
    vocabulary: int | None = None
    ngram: dict[str, int] | None = None
    model_drafts: bool = True


class Score(Record):
    """What the skip set achieved on prompts that the search never read, and on which split.

    ``withheld_because``: why the bench gave no verdict (it then reads ``undecided`` here).
    """

    verdict: Verdict
    withheld_because: list[str] = []
    end_to_end_speedup: Ratio | None = None
    decode_speedup: Ratio | None = None
    acceptance_rate: float | None = None
    mean_accepted_tokens: float | None = None
    split: str = "test"
    num_prompts: int = 0


class SkipConfig(Document):
    """``skip.json``, what a user keeps: the skip set, how it drafts, its score, its origin.

    ``provenance["prompts"]`` holds the hash of every prompt, by split.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/skip-config"

    schema_name: Literal["selfspec-tune/skip-config"] = Field(default="selfspec-tune/skip-config", alias="schema")
    version: Literal[1] = 1
    model: ModelInfo
    skip: SkipLayers
    draft: DraftSettings
    score: Score
    provenance: dict[str, Any] = {}

    def skip_set(self) -> SkipSet:
        """The skip set. Raises `SkipSetError` if it names layers that the model lacks."""
        return SkipSet(self.model.num_layers, tuple(self.skip.attention), tuple(self.skip.mlp))

    def prompt_hashes(self, *splits: str) -> frozenset[str]:
        """Hashes of the prompts in the named splits, say ``calibration`` and ``selection``."""
        prompts = self.provenance.get("prompts", {})
        return frozenset(hash_ for split in splits for hash_ in prompts.get(split, ()))


class StudyConfig(Document):
    """``study.toml``: the resolved configuration of a search, what a resumed one must match.

    Fields that are None are left out of the file. Any further plain field is kept.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/study"

    schema_name: Literal["selfspec-tune/study"] = Field(default="selfspec-tune/study", alias="schema")
    version: Literal[1] = 1
    model: str
    model_fingerprint: str
    dtype: str
    device: str
    prompts: str = "builtin"
    prompts_hash: str = ""
    num_prompts: int | None = None
    template: str = "auto"
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    trials: int | None = None
    timeout_seconds: float | None = None
    seed: int = 0
    runner: str = "fast"
    draft: dict[str, Any] = {}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read study.toml. Raises `FileFormatError`: missing, corrupt, other schema, newer version."""
        try:
            value = tomllib.loads(files.read_text(path))
        except tomllib.TOMLDecodeError as error:
            raise FileFormatError(f"{os.fspath(path)} is not valid TOML ({error}). Fix that line.") from error
        return cls.from_dict(value, origin=os.fspath(path))

    def save(self, path: Path) -> None:
        """Write study.toml atomically. Raises `StorageError`."""
        plain = {key: value for key, value in self.to_dict().items() if value is not None}
        files.write_atomic(path, tomli_w.dumps(plain))

    def differences(self, other: StudyConfig) -> dict[str, tuple[Any, Any]]:
        """Fields whose values differ, each with ours and the other's."""
        ours, theirs = self.to_dict(), other.to_dict()
        pairs = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs}
        return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _check_schema(value: Any, schema: str, version: int, origin: str) -> None:
    if not isinstance(value, dict) or value.get("schema") != schema:
        found = value.get("schema", "no schema") if isinstance(value, dict) else type(value).__name__
        raise FileFormatError(f"{origin} holds {found}; expected schema {schema}. Is it the right file?")
    found_version = value.get("version")
    if not isinstance(found_version, int):
        raise FileFormatError(f"{origin} states no version of {schema}; expected a whole number up to {version}.")
    if found_version > version:
        raise FileFormatError(
            f"{origin} is version {found_version} of {schema}; this program reads up to {version}. "
            "Update selfspec-tune."
        )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"]) or "the whole"
    return f"{place}: {problem['msg']}"
