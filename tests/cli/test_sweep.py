"""``bench --sweep``, its options and messages, and what bench says of resuming."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from selfspec_tune.cli.app import app
from tests.search_kit import ScriptedEngine, prompt_file, read_rows, steady


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompt_file(Path("prompts.jsonl"), 12)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    return ScriptedEngine(steady(1.5)).install(monkeypatch)


@pytest.fixture
def model(tiny_llama_dir: Path) -> tuple[str, ...]:
    options = f"--model {tiny_llama_dir} --dtype float32 --device cpu --prompts prompts.jsonl --num-prompts 3"
    return (*options.split(), "--max-new-tokens", "8", "--skip-set", "attn 1")


def bench(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(app, ["bench", *arguments])


def test_a_sweep_is_printed_and_written(model: tuple[str, ...], engine: ScriptedEngine) -> None:
    files = ("--out", "sweep.json", "--csv", "sweep.csv")
    result = bench(*model, "--sweep", "max-draft", "--sweep-values", "1,2,4", *files)
    assert result.exit_code == 0, result.output
    assert "longest draft" in result.stdout
    assert "●" in result.stdout
    value = json.loads(Path("sweep.json").read_text())
    assert [point["value"] for point in value["points"]] == [1, 2, 4]
    assert len(pd.read_csv("sweep.csv")) == 3 * 3
    assert len(read_rows(Path("sweep.runs.jsonl"))) == 2 + 3 * 3 * 3
    shown = CliRunner().invoke(app, ["show", "sweep.json", "--json"])
    assert json.loads(shown.stdout) == value


def test_a_sweeps_json_is_one_object(model: tuple[str, ...], engine: ScriptedEngine) -> None:
    result = bench(*model, "--sweep", "temperature", "--sweep-values", "0,1", "--json")
    assert json.loads(result.stdout)["schema"] == "selfspec-tune/sweep"


def test_ctrl_c_says_how_far_it_came_and_the_same_command_goes_on(
    model: tuple[str, ...], engine: ScriptedEngine
) -> None:
    def interrupt(measured: int) -> None:
        if measured >= 3:
            raise KeyboardInterrupt

    engine.before_block = interrupt
    options = (*model, "--no-references", "--out", "bench.json")
    stopped = bench(*options)
    assert stopped.exit_code == 130
    message = "interrupted after 1 of 3 blocks, which bench.runs.jsonl keeps; run the same command to resume"
    assert stopped.stderr.splitlines()[-1] == message
    assert not Path("bench.json").exists()
    engine.before_block = lambda measured: None
    assert bench(*options).exit_code == 0
    assert json.loads(Path("bench.json").read_text())["provenance"]["resumed"] == 1
    finished = bench(*options)
    assert finished.exit_code == 0
    assert "bench.runs.jsonl is finished" in finished.stderr
    other = bench(*options, "--max-new-tokens", "9")
    assert other.exit_code == 2
    assert "prompts max_new_tokens was 8, is 9" in other.stderr
    assert bench(*options, "--max-new-tokens", "9", "--fresh").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sweep colour", "colour"),
        ("--sweep context --sweep-values 1,many", "'1,many': expected numbers and commas"),
        ("--sweep context --sweep-values 8,256", "takes whole numbers from 16 on"),
        ("--sweep context --sweep-values 256,2000", "does not fit the model's context of 1024"),
        ("--sweep temperature --temperature 1", "not --temperature"),
        ("--sweep max-draft --spec-bench a.jsonl", "leave it out with --sweep"),
        ("--sweep max-draft --plot a.jpeg", "ends in .png or .svg"),
        ("--sweep-values 1,2", "--sweep-values is for a sweep"),
        ("--plot a.png", "--plot is for a sweep"),
        ("--fresh", "give that file with --out"),
    ],
)
def test_a_bad_option_exits_with_2(model: tuple[str, ...], options: str, message: str) -> None:
    result = bench(*model, *options.split())
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_the_help_tells_that_defaults_are_the_studys() -> None:
    page = " ".join(CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "--help"]).stdout.split())
    assert page.count("the study's; without one") == 12
    assert "the study's test split; without a study 64" in page
    assert "256,512,1024,2048,4096" in page
    search = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["search", "--help"]).stdout
    assert "without one" not in search
