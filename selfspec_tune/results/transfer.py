"""``transfer.json``: what each task's draft is worth on every other task, and what picking one by prompt would give."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from selfspec_tune.results.bench import ModelInfo, Ratio, SkipLayers
from selfspec_tune.results.record import Document, Record, check_provenance


class TransferRow(Record):
    """One draft. ``name``: the task that it was searched for, or ``all``; ``folder``: its study, beside this file.

    ``by_task`` and ``overall`` are end-to-end speedups on the tasks' test prompts, None where its output
    was not lossless; ``selection_speedup`` is the one on the selection prompts of all tasks.
    ``degenerate_share`` of the answers on test prompts go on in circles, by task too; None as in `MethodResult`.
    ``method``: its id in bench.json, shared with another row where both searches found the same draft.
    """

    name: str
    folder: str
    method: str
    draft: str
    skip: SkipLayers
    by_task: dict[str, Ratio | None]
    overall: Ratio | None
    selection_speedup: Ratio | None
    degenerate_share: float | None = None
    degenerate_by_task: dict[str, float | None] = {}


class RouterResult(Record):
    """What a way to pick one of the drafts for each prompt would have got on the test prompts.

    ``ratio_to_single``: the single draft's time over the router's, above 1 the router is faster.
    ``accuracy``: the share of prompts that it sends to the draft of their own task. ``picks``: the
    row that it picks, by prompt hash. What picking itself costs is not counted.
    """

    name: Literal["own task", "nearest task"]
    end_to_end_speedup: Ratio | None
    ratio_to_single: Ratio | None
    accuracy: float
    picks: dict[str, str]

    @property
    def wins(self) -> bool:
        """Whether it is surely faster than the single draft."""
        return self.ratio_to_single is not None and self.ratio_to_single.low > 1.0


class TransferResult(Document):
    """``transfer.json``. ``tasks``: test prompts of each; ``single``: the row that is fastest on selection prompts.

    It was computed from the runs in bench.json beside it.
    """

    SCHEMA: ClassVar[str] = "selfspec-tune/transfer"

    schema_name: Literal["selfspec-tune/transfer"] = Field(default="selfspec-tune/transfer", alias="schema")
    version: Literal[1] = 1
    model: ModelInfo
    tasks: dict[str, int]
    rows: list[TransferRow]
    single: str
    routers: list[RouterResult]
    warnings: list[str] = []
    provenance: dict[str, Any] = {}

    def check(self) -> None:
        """Raise `UsageError` where its provenance is none."""
        check_provenance(self.provenance)

    def row(self, name: str) -> TransferRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)
