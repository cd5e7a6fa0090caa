"""What `selfspec-tune doctor` finds out, as values and as a JSON file. Times are seconds."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from selfspec_tune.results.bench import ModelInfo
from selfspec_tune.results.memory_limit import Spread
from selfspec_tune.results.record import Document, Record


class Check(Record):
    """One thing that must be right for the program to work, or to work well."""

    name: str
    status: Literal["ok", "note", "warning"]
    detail: str


class KernelTiming(Record):
    """A read kernel: what it moves a call, and how fast."""

    name: str
    bytes: int
    seconds: Spread

    @property
    def bytes_per_second(self) -> float:
        """In the median round."""
        return self.bytes / self.seconds.median


class StepTiming(Record):
    """A step of the engine: ``of_limit`` is its share of what the memory can deliver, ``to_decode`` its time
    over that of a decode step, each compared round by round. ``bytes`` is None where they are not known.
    """

    name: str
    seconds: Spread
    bytes: float | None = None
    of_limit: float | None = None
    to_decode: float


class ContextTiming(Record):
    """Kernels and steps after ``length`` tokens, timed in the same rounds; ``limit`` names the fastest kernel."""

    length: int
    rounds: int
    limit: str
    kernels: list[KernelTiming]
    steps: list[StepTiming]

    def step(self, name: str) -> StepTiming | None:
        """The step of that name, if it was timed."""
        return next((step for step in self.steps if step.name == name), None)

    @property
    def limit_bytes_per_second(self) -> float:
        """What the memory can deliver."""
        return next(kernel.bytes_per_second for kernel in self.kernels if kernel.name == self.limit)


class RoundOverhead(Record):
    """Real self-speculative generations: the share of decode time that no draft or verification takes.

    ``over_steps`` is their decode time over what their counts and the steps timed alone give.
    """

    generations: int
    rounds: int
    share: float
    over_steps: float | None = None


class DraftTiming(Record):
    """What drafts: the skip set, its policy, and a step of it as predicted by the fit and as timed."""

    skip_set: str
    policy: dict[str, Any]
    source: str
    predicted_step: float | None = None
    measured_step: float | None = None


class Diagnosis(Document):
    """The ``json`` object of doctor. Without a model everything from ``model`` on is empty.

    ``cost_model`` is `selfspec_tune.draft.costs.CostModel.to_dict`; ``left_out`` the contexts that the
    time did not allow.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/doctor"

    schema_name: Literal["selfspec-tune/doctor"] = Field(default="selfspec-tune/doctor", alias="schema")
    version: Literal[1] = 1
    created: str
    machine: dict[str, Any]
    checks: list[Check]
    model: ModelInfo | None = None
    runner: str | None = None
    draft: DraftTiming | None = None
    contexts: list[ContextTiming] = Field(default_factory=list)
    left_out: list[int] = Field(default_factory=list)
    overhead: RoundOverhead | None = None
    cost_model: dict[str, Any] | None = None
    findings: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
