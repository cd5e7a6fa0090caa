"""``scripts/study_tasks``: the tables of searches for each task that have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfspec_tune.results import BenchResult, TransferResult
from selfspec_tune.statistics import Interval
from selfspec_tune.summary import summarise, summarise_baseline
from tests import scripts_kit
from tests.results_kit import CELL, SKIP, bench_result, skip_config, transfer_result, transfer_row
from tests.runs import paired_run

TASKS = {"code": 4, "maths": 4}
# By draft: how fast it decodes the prompts of each task.
SPEEDS = {"all": {"code": 1.2, "maths": 1.2}, "code": {"code": 1.5, "maths": 1.1}, "maths": {"code": 1.0, "maths": 1.2}}


def common_bench() -> BenchResult:
    runs = {
        name: [
            paired_run(f"set/{task}-{i}", task=task, method=f"m-{name}", candidate=(11, 0.5, 2.0 / speed))
            for task, speed in by_task.items()
            for i in range(TASKS[task])
        ]
        for name, by_task in SPEEDS.items()
    }
    methods = [summarise_baseline(runs["all"])]
    methods += [
        summarise(f"m-{name}", "self-speculative", of, skip=SKIP, description="how") for name, of in runs.items()
    ]
    return bench_result(methods=methods, runs=[run for of in runs.values() for run in of])


def ended_study(out: Path) -> None:
    """What ``selfspec-tune search --per-task`` leaves."""
    out.mkdir()
    (out / "matrix.svg").write_text("<svg/>")
    common_bench().save(out / "bench.json")
    lossy = transfer_row("maths", by_task={"code": CELL, "maths": None}, overall=None)
    rows = [transfer_row("all", draft="attn 2 (cost-aware 16, prior 0.9 0.1)"), transfer_row("code"), lossy]
    transfer_result(Interval(1.1, 1.05, 1.2), tasks=TASKS, rows=rows).save(out / "transfer.json")
    skip_config().save(out / "all" / "skip.json")


def written(out: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    assert scripts_kit.run_script(monkeypatch, "study_tasks", "--model", "models/tiny", "--out", str(out)) == 0
    return (out / "README.md").read_text()


def test_searches_that_have_ended_are_written_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_study(tmp_path / "tasks")
    said = written(tmp_path / "tasks", monkeypatch)
    assert "scripts/study_tasks --model models/tiny --out tasks" in said
    assert "3 searches shared 84m" in said
    assert "| draft searched for | code (4) | maths (4) | together (8) |" in said
    assert "| code | **1.21× [1.15–1.27]** | 1.21× [1.15–1.27] | 1.21× [1.15–1.27] |" in said
    assert "| maths | 1.21× [1.15–1.27] | **–** | – |" in said
    assert "- code: 1.18× as fast as the draft for all: faster." in said
    assert "- maths: – as fast as the draft for all (one of them was lossy)." in said
    assert "- A router wins" in said
    assert "| all | attn 2 (cost-aware 16) |" in said


def test_a_draft_that_two_searches_found_is_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_study(tmp_path / "tasks")
    result = TransferResult.load(tmp_path / "tasks" / "transfer.json")
    rows = [row.model_copy(update={"method": "m-all"}) if row.name == "code" else row for row in result.rows]
    result.model_copy(update={"rows": rows}).save(tmp_path / "tasks" / "transfer.json")
    assert "- code: both searches found the same draft." in written(tmp_path / "tasks", monkeypatch)


def test_what_is_missing_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        asked.append(command)
        (tmp_path / "tasks" / "settings.json").rename(tmp_path / "settings.json")
        (tmp_path / "tasks").rmdir()
        ended_study(tmp_path / "tasks")
        (tmp_path / "settings.json").rename(tmp_path / "tasks" / "settings.json")

    import _study

    monkeypatch.setattr(_study, "run", run)
    written(tmp_path / "tasks", monkeypatch)
    written(tmp_path / "tasks", monkeypatch)
    assert len(asked) == 1
    assert asked[0][0] == "search"
    assert {"--per-task", "--no-ngram"} <= set(asked[0])
