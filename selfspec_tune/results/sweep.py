"""``sweep.json``: how the speedup moves with the context, the temperature or the longest draft."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from selfspec_tune.results.bench import ModelInfo, check_layers
from selfspec_tune.results.methods import MethodResult, NullRun
from selfspec_tune.results.origin import check_provenance
from selfspec_tune.results.record import Document, Record
from selfspec_tune.results.runs import PairedRun
from selfspec_tune.statistics import Verdict


class SweepPoint(Record):
    """A bench at one value; ``prompt_tokens`` is the mean over its prompts. The rest reads as in `BenchResult`."""

    value: float
    prompt_tokens: float
    verdict: Verdict | Literal["withheld"]
    withheld_because: list[str] = []
    methods: list[MethodResult]
    a_a: NullRun | None = None
    baseline_vs_generate: float | None = None
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
