"""What each task's draft is worth on every task: tables from the files of ``selfspec-tune search --per-task``."""

from __future__ import annotations

import _study as study

from selfspec_tune.report import text
from selfspec_tune.results import BenchResult, TransferResult, TransferRow
from selfspec_tune.search.per_task import POOLED
from selfspec_tune.summary import advantage


def matrix(result: TransferResult) -> list[str]:
    """End-to-end speedups, a row for each draft; bold on the task that it was searched for."""
    names = [f"{task} ({number})" for task, number in result.tasks.items()]
    names += [f"together ({sum(result.tasks.values())})"]
    lines = [f"| draft searched for | {' | '.join(names)} |", "| --- " * (1 + len(names)) + "|"]
    for row in result.rows:
        cells = [text.speedup(row.by_task.get(task)) for task in result.tasks]
        cells = [f"**{cell}**" if task == row.name else cell for task, cell in zip(result.tasks, cells, strict=True)]
        lines.append(f"| {row.name} | {' | '.join([*cells, text.speedup(row.overall)])} |")
    return lines


def found(result: TransferResult, bench: BenchResult) -> list[str]:
    """Each search's draft, and how often it is right on the prompts of all tasks."""
    methods = {method.id: method for method in bench.methods}
    lines = ["| searched for | draft | accepted | MAT | selection prompts of all tasks |", "| --- " * 5 + "|"]
    for row in result.rows:
        method = methods[row.method]
        figures = [text.percent(method.acceptance_rate), text.figure(method.mean_accepted_tokens, 2)]
        figures += [text.speedup(row.selection_speedup)]
        lines.append(f"| {row.name} | {study.without_prior(row.draft)} | {' | '.join(figures)} |")
    return lines


def own_against_pooled(result: TransferResult, bench: BenchResult) -> list[str]:
    """For each task, the draft searched for it against the one searched for all, on that task's test prompts."""
    pooled = result.row(POOLED)
    return [_own_line(result.row(task), pooled, bench) for task in result.tasks]


def _own_line(own: TransferRow, pooled: TransferRow, bench: BenchResult) -> str:
    if own.method == pooled.method:
        return f"- {own.name}: both searches found the same draft."
    ours, theirs = ([run for run in study.runs_of(bench, row.method) if run.task == own.name] for row in (own, pooled))
    is_lossy = own.by_task.get(own.name) is None or pooled.by_task.get(own.name) is None
    ratio = None if is_lossy else advantage(ours, theirs)
    return f"- {own.name}: {text.speedup(ratio)} as fast as the draft for all{study.judged(ratio)}."
