"""The transfer matrix and the routers' figures, from scripted runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from selfspec_tune.bench.transfer import Winner, transfer
from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.results import BenchResult, PairedRun, TransferResult
from selfspec_tune.results.metrics import summarise, summarise_baseline
from tests.results_kit import MODEL
from tests.runs import paired_run

TASKS = ("chat", "code")
NAMES = ("all", *TASKS)
WINNERS = [Winner(name, name, Draft(SkipSet(12, (i,))), f"m-{name}") for i, name in enumerate(NAMES)]

# speedup of a draft on a task's prompts
Speeds = Callable[[str, str], float]


def at_home(name: str, task: str) -> float:
    """A draft is fast on its own task alone; the pooled one is middling everywhere."""
    return {"all": 1.5, task: 2.0}.get(name, 1.0)


def runs_of(speeds: Speeds, split: str, **fields: Any) -> list[PairedRun]:
    """Four prompts a task, of different lengths, each decoded by every draft in one block."""
    return [
        paired_run(
            f"{split}/{task}-{number}",
            task=task,
            method=f"m-{name}",
            baseline=(11, 0.0, 1.0 + number),
            candidate=(11, 0.0, (1.0 + number) / speeds(name, task)),
            **fields,
        )
        for task in TASKS
        for number in range(4)
        for name in NAMES
    ]


def bench_of(runs: list[PairedRun]) -> BenchResult:
    methods = [summarise_baseline(runs)]
    for winner in WINNERS:
        of_winner = [run for run in runs if run.method == winner.method]
        methods.append(summarise(winner.method, "self-speculative", of_winner))
    return BenchResult(model=MODEL, verdict="faster", methods=methods, runs=runs)


def judged(
    speeds: Speeds, *, on_selection: Speeds | None = None, nearest: Callable[[PairedRun], str] = lambda run: run.task
) -> TransferResult:
    runs = runs_of(speeds, "test")
    picks = {run.prompt_hash: nearest(run) for run in runs}
    return transfer(WINNERS, bench_of(runs), runs_of(on_selection or speeds, "selection"), picks)


def test_rows_are_drafts_and_columns_the_tasks_of_the_prompts() -> None:
    result = judged(at_home)
    assert result.tasks == {"chat": 4, "code": 4}
    assert [row.name for row in result.rows] == list(NAMES)
    found = {(row.name, task): cell.value for row in result.rows for task, cell in row.by_task.items() if cell}
    assert found == pytest.approx({(name, task): at_home(name, task) for name in NAMES for task in TASKS})
    overall = [row.overall.value for row in result.rows if row.overall]
    assert overall == pytest.approx([1.5, 4 / 3, 4 / 3])


def test_a_router_wins_where_each_task_is_better_off_with_its_own_draft() -> None:
    own, nearest = judged(at_home).routers
    assert own.end_to_end_speedup is not None
    assert own.ratio_to_single is not None
    assert own.end_to_end_speedup.value == pytest.approx(2.0)
    assert own.ratio_to_single.value == pytest.approx(2.0 / 1.5)
    assert (own.accuracy, own.wins) == (1.0, True)
    assert (nearest.accuracy, nearest.wins) == (1.0, True)


def test_a_router_that_sends_prompts_to_the_wrong_draft_loses() -> None:
    own, nearest = judged(at_home, nearest=lambda run: "code").routers
    assert own.wins
    assert nearest.accuracy == 0.5
    assert nearest.ratio_to_single is not None
    assert nearest.ratio_to_single.value == pytest.approx((4 / 3) / 1.5)
    assert not nearest.wins


def test_a_gain_on_some_prompts_only_is_not_sure() -> None:
    """Half of the prompts gain by their own draft, the others lose as much."""
    result = judged(lambda name, task: 1.5 if name == "all" else 2.0 if task == "code" else 1.2)
    assert not any(router.wins for router in result.routers)


def test_the_single_draft_is_chosen_on_selection_prompts_alone() -> None:
    result = judged(at_home, on_selection=lambda name, task: 3.0 if name == "chat" else 1.1)
    assert result.single == "chat"
    assert result.row("chat").selection_speedup is not None
    assert result.row("chat").selection_speedup.value == pytest.approx(3.0)  # type: ignore[union-attr]


def test_picking_the_single_draft_for_every_prompt_changes_nothing() -> None:
    result = judged(at_home, on_selection=lambda name, task: 3.0 if name == "code" else 1.1, nearest=lambda run: "code")
    ratio = result.routers[1].ratio_to_single
    assert ratio is not None
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.0, 1.0, 1.0))


def test_runs_of_another_session_are_compared_by_their_own_baseline() -> None:
    """The machine was three times as fast when the tasks' drafts were measured: no router gains by that."""
    runs = [
        run
        if run.method == "m-all"
        else run.model_copy(
            update={
                arm: getattr(run, arm).model_copy(update={"decode_seconds": getattr(run, arm).decode_seconds / 3})
                for arm in ("baseline", "candidate")
            }
        )
        for run in runs_of(lambda name, task: 1.5, "test")
    ]
    picks = {run.prompt_hash: run.task for run in runs}
    selection = runs_of(lambda name, task: 1.6 if name == "all" else 1.5, "selection")
    result = transfer(WINNERS, bench_of(runs), selection, picks)
    for router in result.routers:
        assert router.ratio_to_single is not None
        assert router.ratio_to_single.value == pytest.approx(1.0)


def test_a_draft_that_was_not_lossless_carries_no_figure_and_nor_does_what_picks_it() -> None:
    runs = [
        run.model_copy(update={"lossless": "mismatch"}) if run.method == "m-code" and "code-0" in run.prompt_id else run
        for run in runs_of(at_home, "test")
    ]
    picks = {run.prompt_hash: "chat" for run in runs}
    result = transfer(WINNERS, bench_of(runs), runs_of(at_home, "selection"), picks)
    assert result.row("code").overall is None
    assert set(result.row("code").by_task.values()) == {None}
    own, nearest = result.routers
    assert own.ratio_to_single is None
    assert own.end_to_end_speedup is None
    assert not own.wins
    assert nearest.ratio_to_single is not None


def test_rows_carry_the_share_of_degenerate_answers_by_task() -> None:
    runs = runs_of(at_home, "test", degenerate=False)
    runs = [run.model_copy(update={"degenerate": run.prompt_id == "test/chat-0"}) for run in runs]
    nearest = {run.prompt_hash: run.task for run in runs}
    result = transfer(WINNERS, bench_of(runs), runs_of(at_home, "selection"), nearest)
    assert {row.degenerate_share for row in result.rows} == {1 / 8}
    assert result.rows[0].degenerate_by_task == {"chat": 1 / 4, "code": 0.0}
    assert judged(at_home).rows[0].degenerate_share is None


def test_the_file_reads_back_as_it_was_written(tmp_path: Any) -> None:
    result = judged(at_home)
    result.save(tmp_path / "transfer.json")
    assert TransferResult.load(tmp_path / "transfer.json") == result
