"""What each task's draft is worth on every task, and whether to pick one by a prompt's vector.

As in KNN-SSD, which picks a skip set by the similarity of a prompt's hidden states to known ones; here
the nearest task is the one whose mean direction is nearest, which needs no number of neighbours and
holds with a single known prompt a task. Pure functions of vectors, no model.

Nothing is decoded here: what a router would have got follows from the runs of the drafts that it picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from selfspec_tune.draft import Draft
from selfspec_tune.intervals import FloatArray, Interval, cluster_bootstrap
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.results import BenchResult, PairedRun, RouterResult, SkipLayers, TransferResult, TransferRow
from selfspec_tune.results.metrics import advantage, end_to_end_times, summarise


@torch.inference_mode()
def prompt_vectors(workload: Workload, items: Sequence[WorkItem]) -> list[FloatArray]:
    """The mean over a prompt's tokens of the model's final hidden states, [width] for each item.

    On the built-in prompts these tell tasks apart better than the mean of input embeddings: with six
    known prompts a task, SmolLM2-135M's nearest centroid is the right one for 75 % against 60 %.
    """
    decoder = workload.loaded.decoder
    vectors = []
    for item in items:
        tokens = torch.tensor([item.tokens], device=workload.loaded.device)
        hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state[0]
        vectors.append(hidden.float().mean(0).cpu().numpy().astype(np.float64))
    return vectors


@dataclass(frozen=True, slots=True)
class NearestTask:
    """``centroids`` [tasks, width] of unit length: the mean direction of each task's known prompts."""

    tasks: tuple[str, ...]
    centroids: FloatArray

    @classmethod
    def of(cls, vectors: Sequence[FloatArray], tasks: Sequence[str]) -> NearestTask:
        """From known prompts: their vectors [width] and tasks. Raises ValueError for none, or for unequal numbers."""
        if not vectors or len(vectors) != len(tasks):
            raise ValueError(f"{len(vectors)} vectors for {len(tasks)} tasks; expected as many, and at least one.")
        names = tuple(sorted(set(tasks)))
        known = _unit(np.stack(vectors))
        means = [known[[task == name for task in tasks]].mean(axis=0) for name in names]
        return cls(names, _unit(np.stack(means)))

    def pick(self, vector: FloatArray) -> str:
        """The task whose centroid has the largest cosine to ``vector`` [width]; of equal ones the first by name."""
        return self.tasks[int(np.argmax(self.centroids @ _unit(vector)))]


def _unit(vectors: FloatArray) -> FloatArray:
    """``vectors`` [..., width] at length 1; a zero vector stays one."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: FloatArray = vectors / np.maximum(lengths, np.finfo(np.float64).tiny)
    return scaled


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
