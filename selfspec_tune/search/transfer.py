"""From the runs of one bench: what each task's draft is worth on every task, and whether to pick one by prompt.

Nothing is decoded here: what a router would have got follows from the runs of the drafts that it picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selfspec_tune.draft import Draft
from selfspec_tune.results import BenchResult, PairedRun, RouterResult, SkipLayers, TransferResult, TransferRow
from selfspec_tune.statistics import Interval, cluster_bootstrap
from selfspec_tune.summary import advantage, end_to_end_times, summarise


@dataclass(frozen=True, slots=True)
class Winner:
    """What the search called ``name`` (a task, or all) in ``folder`` found; ``method``: its id in a bench."""

    name: str
    folder: str
    draft: Draft
    method: str


def transfer(
    winners: Sequence[Winner],
    bench: BenchResult,
    selection: Sequence[PairedRun],
    nearest: Mapping[str, str],
    *,
    seed: int = 0,
) -> TransferResult:
    """The matrix of ``winners`` by task, the single draft, and both routers against it.

    Args:
        bench: every winner on the test prompts of all tasks.
        selection: every winner on the selection prompts of all tasks; the single draft is chosen by these alone.
        nearest: for each test prompt's hash, the task that it is most like.
        seed: of the bootstrap.
    """
    rows = [_row(winner, bench, selection, seed) for winner in winners]
    single = max(rows, key=lambda row: row.selection_speedup.value if row.selection_speedup else 0.0)
    judge = _Judge(rows, bench, single, seed)
    task_of = {run.prompt_hash: run.task for run in bench.runs}
    own = judge.judged("own task", task_of)
    tasks = {task: sum(other == task for other in task_of.values()) for task in sorted(set(task_of.values()))}
    return TransferResult(
        model=bench.model,
        tasks=tasks,
        rows=rows,
        single=single.name,
        routers=[own, judge.judged("nearest task", {prompt: nearest[prompt] for prompt in task_of})],
        warnings=bench.warnings,
        provenance=bench.provenance,
    )


def _row(winner: Winner, bench: BenchResult, selection: Sequence[PairedRun], seed: int) -> TransferRow:
    method = bench.method(winner.method)
    assert method is not None, f"{winner.name} was not measured"
    on_selection = [run for run in selection if run.method == winner.method]
    return TransferRow(
        name=winner.name,
        folder=winner.folder,
        method=winner.method,
        draft=winner.draft.describe(),
        skip=SkipLayers.model_validate(winner.draft.skip_set.to_dict()),
        by_task={task: found.end_to_end_speedup for task, found in method.per_task.items()},
        overall=method.end_to_end_speedup,
        degenerate_share=method.degenerate_share,
        degenerate_by_task={task: found.degenerate_share for task, found in method.per_task.items()},
        selection_speedup=summarise(winner.name, winner.name, on_selection, seed=seed).end_to_end_speedup,
    )


class _Judge:
    """Judges picks of rows by prompt against always taking the ``single`` one."""

    def __init__(self, rows: Sequence[TransferRow], bench: BenchResult, single: TransferRow, seed: int) -> None:
        self._rows = {row.name: row for row in rows}
        self._runs = {(run.method, run.prompt_hash, run.round): run for run in bench.runs}
        self._single, self._seed = single, seed
        self._alone = [run for run in bench.runs if run.method == single.method]

    def judged(self, name: Literal["own task", "nearest task"], picks: Mapping[str, str]) -> RouterResult:
        """``picks``: a row's name for every prompt, by its hash."""
        picked = [self._rows[picks[run.prompt_hash]] for run in self._alone]
        is_lossy = any(row.overall is None for row in picked)
        routed = [
            self._runs[row.method, run.prompt_hash, run.round] for row, run in zip(picked, self._alone, strict=True)
        ]
        task_of = {run.prompt_hash: run.task for run in self._alone}
        return RouterResult(
            name=name,
            end_to_end_speedup=None if is_lossy else self._speedup(routed),
            ratio_to_single=None
            if is_lossy or self._single.overall is None
            else advantage(routed, self._alone, seed=self._seed),
            accuracy=sum(picks[prompt] == task for prompt, task in task_of.items()) / len(task_of),
            picks=dict(picks),
        )

    def _speedup(self, routed: Sequence[PairedRun]) -> Interval:
        times = end_to_end_times(routed)
        return cluster_bootstrap(times.baseline, times.candidate, times.prompts, seed=self._seed)
