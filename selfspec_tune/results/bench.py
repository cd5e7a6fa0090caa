"""``bench.json``: the figures of a bench and the raw runs behind them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import Field

from selfspec_tune.results.methods import MethodResult, NullRun
from selfspec_tune.results.origin import check_provenance
from selfspec_tune.results.record import Document, Record
from selfspec_tune.results.runs import PairedRun
from selfspec_tune.skip_set import MOST_LAYERS, SkipSet
from selfspec_tune.statistics import Verdict


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
