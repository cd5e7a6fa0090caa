"""What an exported draft gains in the runtime that it is for."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from selfspec_tune.results.bench import Ratio, TaskResult
from selfspec_tune.results.record import Document, Record, check_provenance


class RuntimeRun(Record):
    """One answer in the runtime: ``arm`` plain, again (plain once more) or speculative.

    Seconds as the runtime itself states them, where it does: of reading the prompt, and of all tokens after it.
    ``first_tokens``: of ``num_tokens``, those that were there with the prompt's pass. ``degenerate``: whether the
    answer goes on in circles; None: ``too_short`` to tell, or nobody looked, as in older files.
    """

    prompt_id: str
    arm: Literal["plain", "again", "speculative"]
    num_tokens: int
    first_tokens: int = 0
    prompt_seconds: float
    decode_seconds: float
    drafted: int = 0
    accepted: int = 0
    text_hash: str
    degenerate: bool | None = None
    too_short: bool = False


class RuntimeBench(Document):
    """The target with its exported draft against the target alone, in one runtime, interleaved by prompt.

    ``again``: the target alone against itself. ``same_texts``: prompts whose text by speculation is the target's own.
    ``degenerate_share``, ``num_too_short`` and ``without_degenerate`` as in `MethodResult`.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/runtime-bench"

    schema_name: Literal["selfspec-tune/runtime-bench"] = Field(default="selfspec-tune/runtime-bench", alias="schema")
    version: Literal[1] = 1
    runtime: str
    model: str
    draft: str
    draft_tokens: int
    decode_speedup: Ratio
    end_to_end_speedup: Ratio
    again: Ratio
    tokens_per_second: float
    acceptance_rate: float | None
    mean_accepted_tokens: float
    same_texts: int
    num_prompts: int
    degenerate_share: float | None = Field(default=None, ge=0, le=1)
    num_too_short: int = Field(default=0, ge=0)
    without_degenerate: TaskResult | None = None
    provenance: dict[str, Any] = {}
    runs: list[RuntimeRun] = []

    def decode_tokens_per_second(self, arm: str) -> float | None:
        """Tokens that the arm made after the prompt's pass, over their seconds; None where no run tells."""
        runs = [run for run in self.runs if run.arm == arm and run.decode_seconds > 0]
        made = sum(run.num_tokens - run.first_tokens for run in runs)
        return made / sum(run.decode_seconds for run in runs) if runs else None

    def check(self) -> None:
        """Raise `UsageError` where its provenance is none."""
        check_provenance(self.provenance)
