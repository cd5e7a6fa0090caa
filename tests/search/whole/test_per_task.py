"""A search for each task, what each draft is worth on the others, and how all of it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.bench import per_task, plan_per_task, run_per_task
from selfspec_tune.bench import run as bench_run
from selfspec_tune.bench.per_task import split_searches
from selfspec_tune.errors import BudgetError, PromptError, UsageError
from selfspec_tune.prompts import load_prompts
from selfspec_tune.reporting import Candidate
from selfspec_tune.requests import SearchRequest, StrategyName
from selfspec_tune.results import BenchResult, SkipConfig, StudyConfig, TransferResult
from selfspec_tune.search import fitting, run_search
from selfspec_tune.search import run as run_module
from selfspec_tune.search.estimates import Costs
from selfspec_tune.search.fitting import Timed
from selfspec_tune.search.setup import SearchSetup
from tests.search_kit import Listener, ScriptedEngine, prompt_rows, read_rows

NAMES = ("all", "chat", "code")


@pytest.fixture
def asked(make_request: Any) -> Callable[..., SearchRequest]:
    """Requests for quick searches: uniform skipping, two trials each, on calibration prompts with long answers."""

    def make(**fields: Any) -> SearchRequest:
        source = fields.pop("source", None)
        request: SearchRequest = make_request(**{"trials": 2, "strategy": StrategyName.UNIFORM, "seed": 2, **fields})
        return request if source is None else replace(request, prompts=replace(request.prompts, source=source))

    return make


def read_by(folder: Path) -> tuple[set[str], set[str]]:
    """Hashes of the prompts that a search read, and of those that its winner was tested on."""
    config = SkipConfig.load(folder / "skip.json")
    return set(config.prompt_hashes("calibration", "selection")), set(config.prompt_hashes("test"))


@pytest.fixture
def transfer(asked: Callable[..., SearchRequest], engine: ScriptedEngine) -> TransferResult:
    return run_per_task(asked(), Listener()).transfer


def test_every_task_has_a_study_of_its_own_and_all_have_one_together(
    asked: Callable[..., SearchRequest], transfer: TransferResult
) -> None:
    out = asked().out
    assert [row.name for row in transfer.rows] == list(NAMES)
    assert [row.folder for row in transfer.rows] == list(NAMES)
    for name, tasks in zip(NAMES, (["chat", "code"], ["chat"], ["code"]), strict=True):
        config = StudyConfig.load(out / name / "study.toml")
        assert config.tasks == tasks
        assert config.num_prompts == 8 * len(tasks)
    assert TransferResult.load(out / "transfer.json").to_dict() == transfer.to_dict()
    assert BenchResult.load(out / "bench.json").split == "test"


def test_what_one_search_read_is_in_no_others_test(
    asked: Callable[..., SearchRequest], transfer: TransferResult
) -> None:
    out = asked().out
    found = {name: read_by(out / name) for name in NAMES}
    assert found["all"][0] == found["chat"][0] | found["code"][0]
    assert found["all"][1] == found["chat"][1] | found["code"][1]
    everything_read = set().union(*(read for read, _ in found.values()))
    tested = {run.prompt_hash for run in BenchResult.load(out / "bench.json").runs}
    assert tested == found["all"][1]
    assert not tested & everything_read
    assert transfer.tasks == {"chat": 4, "code": 4}


def test_every_draft_is_measured_on_the_same_prompts(
    asked: Callable[..., SearchRequest], transfer: TransferResult
) -> None:
    runs = BenchResult.load(asked().out / "bench.json").runs
    for row in transfer.rows:
        assert len({run.prompt_hash for run in runs if run.method == row.method}) == 8
        assert row.by_task.keys() == {"chat", "code"}
        assert row.overall is not None
        assert row.selection_speedup is not None
    selected = {row["prompt_hash"] for row in read_rows(asked().out / "selection.jsonl")}
    assert selected == set(SkipConfig.load(asked().out / "all" / "skip.json").prompt_hashes("selection"))
    assert transfer.single in NAMES
    for router in transfer.routers:
        assert set(router.picks) == {run.prompt_hash for run in runs}
        assert set(router.picks.values()) <= {"chat", "code"}


def test_the_model_is_loaded_once(
    asked: Callable[..., SearchRequest], engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    really = per_task.open_workload

    def counted(*arguments: Any) -> Any:
        opened.append(arguments)
        return really(*arguments)

    monkeypatch.setattr(per_task, "open_workload", counted)
    monkeypatch.setattr(bench_run, "open_workload", None)
    run_per_task(asked(), Listener())
    assert len(opened) == 1


def test_a_finished_run_is_read_not_repeated(asked: Callable[..., SearchRequest], engine: ScriptedEngine) -> None:
    first = run_per_task(asked(), Listener())
    measured = len(engine.measured)
    listener = Listener()
    again = run_per_task(asked(), listener)
    assert len(engine.measured) == measured
    assert again.transfer.rows == first.transfer.rows
    assert sum("is finished" in notice for notice in listener.notices) >= len(NAMES)


def test_ctrl_c_ends_everything_and_the_same_command_goes_on(
    asked: Callable[..., SearchRequest], engine: ScriptedEngine
) -> None:
    request = asked()

    def stop_in_chat(candidate: Candidate) -> None:
        if (request.out / "chat" / "trials.jsonl").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_per_task(request, Listener(on_trial=stop_in_chat))
    assert (request.out / "all" / "bench.json").exists()
    assert not (request.out / "code").exists()
    before = (request.out / "all" / "trials.jsonl").read_bytes()
    found = run_per_task(request, Listener())
    assert [row.name for row in found.transfer.rows] == list(NAMES)
    assert (request.out / "all" / "trials.jsonl").read_bytes() == before


@pytest.mark.parametrize("log", ["selection.jsonl", "bench.runs.jsonl"])
def test_ctrl_c_while_drafts_are_compared_keeps_what_was_measured(
    asked: Callable[..., SearchRequest], engine: ScriptedEngine, log: str
) -> None:
    request = asked()

    def interrupt(measured: int) -> None:
        if (request.out / log).exists() and len(read_rows(request.out / log)) > 3:
            raise KeyboardInterrupt

    engine.before_block = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_per_task(request, Listener())
    begun = read_rows(request.out / log)
    engine.before_block = lambda measured: None
    run_per_task(request, Listener())
    assert read_rows(request.out / log)[: len(begun)] == begun


def test_the_time_is_shared_out_and_trials_are_for_each(asked: Callable[..., SearchRequest]) -> None:
    searches = split_searches(asked(trials=5, timeout_seconds=90.0))
    seconds = [search.timeout_seconds for search in searches.values()]
    assert seconds == pytest.approx([37.5, 26.25, 26.25])  # half of it equally, half by prompts
    assert [search.trials for search in searches.values()] == [5] * 3
    assert [search.timeout_seconds for search in split_searches(asked()).values()] == [None] * 3


def test_a_share_that_is_too_short_is_told_as_one(asked: Callable[..., SearchRequest], engine: ScriptedEngine) -> None:
    with pytest.raises(BudgetError, match=r"^all \(one of 3 searches that share the time\): `timeout` 0s is"):
        run_per_task(asked(trials=None, timeout_seconds=0.003), Listener())


def test_a_search_that_was_planned_goes_on_however_slow_the_machine_has_become(
    asked: Callable[..., SearchRequest], engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asked(timeout_seconds=3600.0)

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "make_check", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_per_task(request, Listener())
    assert not (request.out / "all" / "ranking.json").exists()

    def timed(setting: SearchSetup) -> Timed:
        return Timed(Costs(100.0, 100.0)) if setting.request.out.name == "all" else Timed(Costs(1e-3, 1e-4))

    monkeypatch.setattr(fitting, "time_few_steps", timed)
    assert [row.name for row in run_per_task(request, Listener()).transfer.rows] == list(NAMES)


def test_tasks_can_be_left_out(asked: Callable[..., SearchRequest], tmp_path: Path) -> None:
    source = write_tasks(tmp_path, "chat", "code", "law")
    searches = split_searches(asked(source=source, num_prompts=12, tasks=("code", "law")))
    assert list(searches) == ["all", "code", "law"]
    assert searches["all"].prompts.tasks == ("code", "law")
    assert searches["law"].prompts.num_prompts == 6


def write_tasks(folder: Path, *tasks: str) -> str:
    """A file of prompts over ``tasks``, eight each; returns its name as a source."""
    rows = [{**row, "task": tasks[number % len(tasks)]} for number, row in enumerate(prompt_rows(8 * len(tasks)))]
    file = folder / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(file)


def test_tasks_with_too_few_prompts_are_refused_before_any_search(asked: Callable[..., SearchRequest]) -> None:
    request = asked(num_prompts=7)
    with pytest.raises(PromptError) as caught:
        run_per_task(request, Listener())
    drawn = load_prompts(request.prompts.source, num_prompts=7, seed=2)
    assert f"chat {sum(prompt.task == 'chat' for prompt in drawn)}, code " in str(caught.value)
    assert not request.out.exists()


def test_one_task_alone_is_refused(asked: Callable[..., SearchRequest]) -> None:
    with pytest.raises(UsageError, match="needs prompts of several tasks; these are all of task code"):
        split_searches(asked(tasks=("code",)))


def test_a_task_called_all_is_refused(asked: Callable[..., SearchRequest], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is a task of that name"):
        split_searches(asked(source=write_tasks(tmp_path, "all", "code")))


def test_every_task_gets_a_folder_of_its_own_whatever_its_name(
    asked: Callable[..., SearchRequest], tmp_path: Path
) -> None:
    names = ("C", "c", "c++", "../up", "数学")
    searches = split_searches(asked(source=write_tasks(tmp_path, *names), num_prompts=None))
    folders = {name: search.out.name for name, search in searches.items()}
    assert folders["c"] == "c"
    assert len({folder.lower() for folder in folders.values()}) == 6
    assert all(search.out.parent == asked().out for search in searches.values())


def test_few_prompts_a_task_are_told(asked: Callable[..., SearchRequest], engine: ScriptedEngine) -> None:
    listener = Listener()
    plans = plan_per_task(asked(num_prompts=14), listener)
    assert list(plans) == list(NAMES)
    assert sum(plans["chat"].splits.values()) == 7
    assert any("fewer than 8 prompts" in notice for notice in listener.notices)


def test_a_search_of_one_task_reads_nothing_else_and_resumes(
    asked: Callable[..., SearchRequest], engine: ScriptedEngine
) -> None:
    request = asked(tasks=("code",), num_prompts=8)
    outcome = run_search(request, Listener())
    assert outcome.bench is not None
    assert {run.task for run in outcome.bench.runs} == {"code"}
    with pytest.raises(UsageError, match="tasks"):
        run_search(replace(request, prompts=replace(request.prompts, tasks=())), Listener())
    measured = len(engine.measured)
    run_search(request, Listener())
    assert len(engine.measured) == measured


def test_a_study_without_tasks_says_nothing_of_them(
    asked: Callable[..., SearchRequest], engine: ScriptedEngine
) -> None:
    run_search(asked(), Listener())
    assert "tasks" not in (asked().out / "study.toml").read_text()
