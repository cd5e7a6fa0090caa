"""``studies/growth``: costs of trials, fits, the plan for a large model, and a whole study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.errors import UsageError
from selfspec_tune.requests import StrategyName
from tests import scripts_kit
from tests.search_kit import hurry, read_rows

import growth_calibration as calibration  # isort: skip  # from studies/growth, by scripts_kit
import growth_report as report  # isort: skip
import growth_trials as trials  # isort: skip
import large_plan as large  # isort: skip

TPE = trials.Cell(StrategyName.TPE, 8)
NOTHING_MEASURED: dict[str, Any] = {"overheads": [], "replay_seconds": 0.0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def test_every_sampler_proposes_and_each_trial_is_on_file(tmp_path: Path) -> None:
    pytest.importorskip("cmaes")
    cells = [trials.Cell(sampler, 8) for sampler in trials.SAMPLERS]
    rows = trials.run_trials(cells, tmp_path, 3, 60.0)
    assert rows == read_rows(tmp_path / "trials.jsonl")
    found = list(report.cells_of(rows))
    assert [end["sampler"] for end, _ in found] == [sampler.value for sampler in trials.SAMPLERS]
    for end, of_cell in found:
        assert (end["ended"], end["trials"]) == ("trials", 3)
        assert [row["trial"] for row in of_cell] == [0, 1, 2]
        assert all(row["seconds"] > row["sampler_seconds"] > 0 for row in of_cell)
        sizes = [row["journal_bytes"] for row in of_cell]
        assert 0 < sizes[0] < sizes[1] < sizes[2]
    assert not list((tmp_path / "journals").iterdir())


def test_a_sampler_that_is_too_slow_ends_and_the_table_says_so(tmp_path: Path) -> None:
    rows = trials.run_trials([TPE], tmp_path, 9, 0.0)
    ((end, of_cell),) = report.cells_of(rows)
    assert (end["ended"], len(of_cell)) == ("too slow", 1)
    assert "ended: trial 1 took" in report.trials_table(rows)[-1]


def test_trials_go_on_where_they_were_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    score = trials.FakeScoring.score

    def killed(self: Any, trial: Any, draft: Any) -> Any:
        if trial.number == 2:
            raise Killed
        return score(self, trial, draft)

    monkeypatch.setattr(trials.FakeScoring, "score", killed)
    with pytest.raises(Killed):
        trials.run_trials([TPE], tmp_path, 4, 60.0)
    assert [row["trial"] for row in read_rows(tmp_path / "trials.jsonl")] == [0, 1]
    monkeypatch.setattr(trials.FakeScoring, "score", score)
    ((end, of_cell),) = report.cells_of(trials.run_trials([TPE], tmp_path, 4, 60.0))
    assert ([row["trial"] for row in of_cell], end["trials"]) == ([0, 1, 2, 3], 4)
    assert trials.run_trials([TPE], tmp_path, 4, 60.0) == read_rows(tmp_path / "trials.jsonl")


def test_a_fit_finds_what_a_token_and_layer_takes() -> None:
    rows = [
        {
            "cell": {"layers": layers},
            "tokens": tokens,
            "kept_bytes": 5e6 + 900 * tokens + 2048 * tokens * layers,
            "scorer_seconds": 0.1 + 1e-5 * tokens * layers,
        }
        for layers in (12, 28, 56)
        for tokens in (1000, 4000)
    ]
    found = calibration.fit(rows)
    assert found["bytes_per_token_and_layer"] == pytest.approx(2048)
    assert found["bytes_per_token"] == pytest.approx(900)
    assert found["scorer_seconds_per_token_and_layer"] == pytest.approx(1e-5)
    assert found["r_squared"] == pytest.approx(1.0)


# The plan


def test_the_large_models_shapes_give_its_published_size() -> None:
    shape = large.LLAMA_2_70B
    norms = (2 * shape.layers + 1) * shape.width
    assert shape.weights + norms == 68_976_648_192  # parameters of the checkpoint
    assert shape.kv_bytes == 2 * 80 * 8 * 128 * 2


def test_reading_bounds_a_step_and_computing_a_wide_pass() -> None:
    shape = large.LLAMA_2_70B
    one, eight = large.MACHINES
    reading = 2 * shape.read_weights / (one.bytes_a_second * one.bandwidth_share)
    assert one.pass_seconds(shape, 1) - one.sync_seconds == pytest.approx(reading)
    assert one.pass_seconds(shape, 16) == one.pass_seconds(shape, 1)
    computing = 2 * shape.read_weights * 4000 / (one.flops * one.flops_share)
    assert one.pass_seconds(shape, 4000) - one.sync_seconds == pytest.approx(computing)
    assert eight.pass_seconds(shape, 1) - eight.sync_seconds == pytest.approx(reading / 8)


def test_trials_fit_until_the_time_is_spent_and_later_ones_cost_as_a_line_says() -> None:
    assert large.fitting(10.0, 2.0, []) == (5, 0.0)
    assert large.fitting(10.0, 2.0, [0.5, 0.5])[0] == 4
    number, beside = large.fitting(100.0, 2.0, [0.0, 0.1, 0.2, 0.3])
    assert beside == pytest.approx(0.1 * sum(range(number)))
    assert 100 - 2.0 - 0.1 * number < 2 * number + beside <= 100
    assert large.fitting(1.0, 2.0, [0.1]) == (0, 0.0)


@pytest.mark.parametrize("machine", large.MACHINES, ids=lambda machine: str(machine.working))
def test_the_plan_shares_out_all_of_its_time(machine: Any) -> None:
    task = large.Task()
    found = large.plan(large.LLAMA_2_70B, machine, task, NOTHING_MEASURED)
    assert sum(found["stage_seconds"].values()) == pytest.approx(task.seconds)
    assert found["trials"] == int(found["stage_seconds"]["trials"] / found["trial_seconds"])
    assert sum(found["gpu_bytes"].values()) < machine.memory_bytes
    text = "\n".join(report.plan_lines([found]))
    assert "**Computed, not measured**: Llama-2-70B" in text
    assert f"| trials that fit | {found['trials']} |" in text


def test_a_task_without_time_for_trials_has_none() -> None:
    found = large.plan(large.LLAMA_2_70B, large.MACHINES[0], large.Task(seconds=300.0), NOTHING_MEASURED)
    assert (found["trials"], found["overhead_share"]) == (0, None)
    assert "| of their time to propose and store | – |" in report.plan_lines([found])


# A whole study


def test_a_study_measures_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    how = ["--out", str(out), "--samplers", "tpe,random", "--sublayers", "8,160", "--trials", "3", "--layers", "2,3"]
    how += ["--answers", "2"]
    assert scripts_kit.run_script(monkeypatch, scripts_kit.GROWTH / "growth.py", *how) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["cell"]["layers"] for row in results["calibration"]] == [2, 3]
    first, second = results["calibration"]
    assert second["formula_bytes"] == 1.5 * first["formula_bytes"]
    assert first["tokens"] >= 2 * first["cell"]["prompt_tokens"]
    assert all(plan["overhead_seconds"] > 0 for plan in results["plans"])
    logs = {name: (out / name).read_text() for name in ("trials.jsonl", "calibration.jsonl")}
    assert scripts_kit.run_script(monkeypatch, scripts_kit.GROWTH / "growth.py", *how) == 0
    assert {name: (out / name).read_text() for name in logs} == logs
    readme = (out / "README.md").read_text()
    assert "| 160 | tpe |" in readme
    assert str(tmp_path) not in readme
    assert all((out / name).read_bytes().startswith(b"<?xml") for name in ("trials.svg", "calibration.svg"))
    with pytest.raises(UsageError, match="trials was 3, is 4"):
        scripts_kit.run_script(monkeypatch, scripts_kit.GROWTH / "growth.py", *how, "--trials", "4")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--samplers", "tpe,best"), ("--sublayers", "7"), ("--layers", "many"), ("--answers", "0"), ("--trials", "1")],
)
def test_bad_options_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    with pytest.raises(UsageError, match=f"{option}.*: expected"):
        scripts_kit.run_script(
            monkeypatch, scripts_kit.GROWTH / "growth.py", "--out", str(tmp_path / "out"), option, value
        )
