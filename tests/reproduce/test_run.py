"""``selfspec-tune reproduce``: plans, verdicts, and steps that run once, whatever happens on the way."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from selfspec_tune.cli.app import app
from selfspec_tune.cli.exits import RESUMABLE
from selfspec_tune.errors import FileFormatError
from selfspec_tune.intervals import Interval
from selfspec_tune.reproduce import PLAN_FILE, Command, Plan, Verdict, run
from selfspec_tune.reproduce.run import published_figures
from selfspec_tune.reproduce.steps import run_command
from selfspec_tune.reproduce.verdicts import figure, judge
from tests.results_kit import bench_result, skip_config
from tests.search_kit import prompt_file

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted((ROOT / "studies").rglob(PLAN_FILE))
PLAN = """
schema = "selfspec-tune/reproduce"
version = 1
[settings]
model = "tiny"
[[step]]
name = "first"
command = "bench --model {model} --prompts builtin --out {out}/bench.json"
[[step]]
name = "second"
command = "doctor --json"
saves = "deep/doctor.json"
[[claim]]
says = "It is faster"
file = "bench.json"
figure = ["methods", { name = "self-speculative" }, "decode_speedup"]
[[claim]]
says = "It is nearer to model.generate"
file = "bench.json"
figure = ["baseline_vs_generate"]
tolerance = 0.1
"""


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.parent.name)
def test_a_published_plan_is_sound_and_its_figures_are_there(file: Path) -> None:
    plan = Plan.of(file.parent)
    assert len(published_figures(plan, file.parent)) == len(plan.claims)


def test_the_plan_in_the_studies_readme_is_one(tmp_path: Path) -> None:
    page = (ROOT / "studies" / "README.md").read_text()
    (tmp_path / PLAN_FILE).write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert [step.name for step in Plan.of(tmp_path).steps] == ["humaneval", "machine"]


# Verdicts


@pytest.mark.parametrize(
    ("here", "verdict"),
    [
        (Interval(1.22, 1.14, 1.30), Verdict.HOLDS),
        (Interval(1.40, 1.31, 1.50), Verdict.DIFFERS),
        (Interval(1.05, 1.00, 1.09), Verdict.DIFFERS),
        (Interval(1.29, 1.20, 1.36), Verdict.UNTOLD),  # its value lies outside
        (Interval(1.26, 1.22, 1.30), Verdict.UNTOLD),  # the published value lies outside
        (Interval(1.20, 1.00, 1.45), Verdict.UNTOLD),  # too wide
        (Interval(1.20, 0.00, math.inf), Verdict.UNTOLD),
        (None, Verdict.UNMEASURED),
    ],
)
def test_intervals_decide(here: Interval | None, verdict: Verdict) -> None:
    assert judge(Interval(1.21, 1.15, 1.27), here) == verdict


def test_counts_hold_where_they_are_equal() -> None:
    none, one = (figure({"mismatches": number}, ["mismatches"]) for number in (0, 1))
    assert (judge(none, none), judge(none, one)) == (Verdict.HOLDS, Verdict.DIFFERS)


def test_a_published_interval_without_bounds_tells_nothing() -> None:
    unbounded = figure({"value": 1.2, "low": 0.0, "high": None}, ["x"][:0])
    assert unbounded == Interval(1.2, 0.0, math.inf)
    assert judge(unbounded, unbounded) == Verdict.UNTOLD


def test_a_figure_is_found_by_its_way() -> None:
    document = {"rows": [{"name": "a", "s": {"median": 2.0, "low": 1.0, "high": 3.0}}, {"name": "b", "s": 4}]}
    assert figure(document, ["rows", {"name": "a"}, "s"]) == Interval(2.0, 1.0, 3.0)
    assert figure(document, ["rows", -1, "s"], 0.25) == Interval(4.0, 3.0, 5.0)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (["none"], "there is no 'none'"),
        (["rows", {"name": "c"}], "no entries have name=c"),
        (["rows", {}], "2 entries"),
        (["rows", 2], "2 entries, none at 2"),
        (["rows", 0, "name"], r"rows\[0\].name is a str, no figure"),
        (["rows", 0, "ok"], "is a bool"),
        (["rows", 0, "gone"], "is nothing"),
        ([0], "no list"),
    ],
)
def test_a_way_that_leads_nowhere_says_where_it_ends(way: list[Any], said: str) -> None:
    document = {"rows": [{"name": "a", "ok": True, "gone": None}, {"name": "b"}]}
    with pytest.raises(LookupError, match=said):
        figure(document, way)


# Plans


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1", "version = 2", "is version 2"),
        ("[settings]", "[settings", "not valid TOML"),
        ("bench --model", "rm -r --model", "begins with 'rm'"),
        ("bench --model", "bench --trust-remote-code --model", "other people's code"),
        ("{out}/bench.json", "/tmp/bench.json", "expected a place in {out}"),
        ("{out}/bench.json", "{out}/../bench.json", "expected a place in {out}"),
        (" --out {out}/bench.json", "", "lacks `out`"),
        (" --out {out}", " --out={out}.json", "expected a place in {out}"),
        ("{model}", "{weights}", "names {weights}; expected one of out, study, model"),
        ("builtin", "'builtin", "cannot be split"),
        ('"second"', '"first"', "two steps are named first"),
        ("deep/doctor", "../doctor", "inside the study's folder"),
        ("saves =", "safes =", "step.1.safes"),
        ('model = "tiny"', 'out = "tiny"', "cannot be a setting"),
        ('file = "bench.json"', 'file = "/bench.json"', "inside the study's folder"),
        ("tolerance = 0.1", "tolerance = 2", "less than or equal to 1"),
        ('figure = ["baseline_vs_generate"]', "figure = []", "claim.1.figure"),
    ],
)
def test_a_malformed_plan_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in PLAN
    (tmp_path / PLAN_FILE).write_text(PLAN.replace(old, new, 1))
    with pytest.raises(FileFormatError) as error:
        Plan.of(tmp_path)
    assert said in str(error.value)


# The command


class Steps:
    """Stands in for the processes: leaves what each step would."""

    def __init__(self, study: Path) -> None:
        self.ran: list[str] = []
        self.codes: dict[str, int] = {}
        self.interrupts: set[str] = set()
        self._study = study

    def __call__(self, command: Command, *, quiet: bool) -> int:
        self.ran.append(command.name)
        if command.name in self.interrupts:
            raise KeyboardInterrupt
        if command.name == "first" and not self.codes.get("first"):
            out = Path(command.words[-1])
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes((self._study / "bench.json").read_bytes())
        return self.codes.get(command.name, 0)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama_dir: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / PLAN_FILE).write_text(PLAN.replace('"tiny"', f'"{tiny_llama_dir}"'))
    bench_result(provenance=skip_config().provenance).save(folder / "bench.json")
    return folder


@pytest.fixture
def steps(study: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    made = Steps(study)
    monkeypatch.setattr(run, "run_command", made)
    return made


def reproduce(*arguments: str | Path) -> Result:
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, ["reproduce", *map(str, arguments)])


def test_steps_run_once_and_claims_are_judged(study: Path, steps: Steps) -> None:
    done = reproduce(study, "--out", "again")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("holds") == 2
    assert "changed" not in done.stdout
    assert "published on Some CPU, 2 threads; torch 2.13.0; commit 0123456; 2031-01-02" in done.stdout
    again = reproduce(study, "--out", "again", "--json")
    assert steps.ran == ["first", "second"]
    found = json.loads(again.stdout)
    assert [claim["verdict"] for claim in found["claims"]] == ["holds", "holds"]
    assert found["claims"][1]["here"] == pytest.approx({"value": 1.3, "low": 1.17, "high": 1.43})
    assert list(found["ended"]) == ["first", "second"]


def test_a_figure_that_differs_is_no_failure(study: Path, steps: Steps) -> None:
    assert reproduce(study, "--out", "again").exit_code == 0
    other = json.loads((study / "bench.json").read_text())
    other["baseline_vs_generate"] = 2.6
    other["model"]["fingerprint"] = "another"
    Path("again/bench.json").write_text(json.dumps(other))
    done = reproduce(study, "--out", "again")
    assert done.exit_code == 0
    assert "differs" in done.stdout
    assert "measured on other weights (another, published 00ff00ff00ff00ff)" in done.stdout


def test_a_step_that_fails_ends_no_other_and_is_tried_again(study: Path, steps: Steps) -> None:
    steps.codes = {"first": 2}
    done = reproduce(study, "--out", "again")
    assert done.exit_code == 1
    assert "first (exit code 2)" in done.stdout
    assert "was not measured" in done.stdout
    assert "there is no bench.json" in done.stdout
    steps.codes = {}
    assert reproduce(study, "--out", "again").exit_code == 0
    assert steps.ran == ["first", "second", "first"]


def test_an_interrupted_reproduction_goes_on(study: Path, steps: Steps) -> None:
    steps.interrupts = {"second"}
    done = reproduce(study, "--out", "again")
    assert (done.exit_code, RESUMABLE in done.stderr) == (130, True)
    steps.interrupts = set()
    assert reproduce(study, "--out", "again").exit_code == 0
    assert steps.ran == ["first", "second", "second"]


def test_one_step_alone_leaves_the_rest_for_later(study: Path, steps: Steps) -> None:
    done = reproduce(study, "--out", "again", "--step", "second")
    assert (done.exit_code, steps.ran) == (0, ["second"])
    assert done.stdout.count("was not measured") == 2
    reproduce(study, "--out", "again")
    assert steps.ran == ["second", "first"]


def test_what_has_ended_needs_its_inputs_no_more(study: Path, steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(Plan.of(study).settings["model"])
    plan = study / PLAN_FILE
    plan.write_text(plan.read_text().replace(Plan.of(study).settings["model"], "./model"))
    reproduce(study, "--out", "again")
    (tmp_path / "model").unlink()
    assert reproduce(study, "--out", "again").stdout.count("holds") == 2
    refused = reproduce(study, "--out", "other")
    assert (refused.exit_code, Path("other").exists()) == (2, False)


def test_a_dry_run_prints_and_runs_nothing(study: Path, steps: Steps, tiny_llama_dir: Path) -> None:
    done = reproduce(study, "--dry-run", "--out", "again")
    assert done.exit_code == 0, done.output
    assert (
        f"first: selfspec-tune bench --model {tiny_llama_dir} --prompts builtin --out again/bench.json" in done.stdout
    )
    assert "1.30 [1.17–1.43]  It is nearer to model.generate" in done.stdout
    plain = json.loads(reproduce(study, "--dry-run", "--json").stdout)
    assert [step["name"] for step in plain["steps"]] == ["first", "second"]
    assert (steps.ran, Path("again").exists()) == ([], False)


def test_a_dry_run_notes_that_a_model_is_not_here_yet(study: Path, steps: Steps) -> None:
    missing = ("--set", "model=somebody/elsewhere-7b")
    done = reproduce(study, "--dry-run", *missing)
    assert (done.exit_code, steps.ran) == (0, [])
    assert "first: selfspec-tune bench --model somebody/elsewhere-7b" in done.stdout
    assert "note: Step first: somebody/elsewhere-7b is not on this machine" in done.stderr
    assert reproduce(study, "--dry-run", "--quiet", *missing).stderr == ""
    assert reproduce(study, "--out", "again", *missing).exit_code == 1
    lost = reproduce(study, "--dry-run", "--set", "model=./nowhere")
    assert (lost.exit_code, "nowhere" in lost.stderr) == (2, True)


def without_plan(study: Path) -> list[str]:
    (study / PLAN_FILE).unlink()
    return []


def other_files(study: Path) -> list[str]:
    Path("mine").mkdir()
    Path("mine/thesis.txt").touch()
    return ["--out", "mine"]


def lost_figure(study: Path) -> list[str]:
    value = json.loads((study / "bench.json").read_text())
    (study / "bench.json").write_text(json.dumps({**value, "methods": []}))
    return []


def without_prompts(study: Path) -> list[str]:
    plan = study / PLAN_FILE
    plan.write_text(plan.read_text().replace("builtin", "missing.jsonl"))
    return []


@pytest.mark.parametrize(
    ("arrange", "said"),
    [
        (without_plan, "has no reproduce.toml"),
        (other_files, "holds other files"),
        (lambda study: ["--out", str(study)], "holds other files"),
        (lambda study: ["--out", str(study / "bench.json")], "is a file"),
        (lambda study: ["--set", "model=nowhere/at/all"], "Step first: Unknown model 'nowhere/at/all'"),
        (lambda study: ["--set", "model=nowhere/at/all"], "Give another with --set model="),
        (lambda study: ["--set", "weights=x"], "has no setting 'weights'; its settings are model"),
        (lambda study: ["--set", "model"], "expected NAME=VALUE"),
        (lambda study: ["--step", "third"], "no step 'third'; its steps are first, second"),
        (lost_figure, "lacks the figure of the claim 'It is faster'"),
        (without_prompts, "Step first: There is no file missing.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    study: Path, steps: Steps, arrange: Callable[[Path], list[str]], said: str
) -> None:
    done = reproduce(study, *arrange(study))
    assert (done.exit_code, steps.ran) == (2, [])
    assert said in done.stderr


def test_a_folder_of_other_settings_is_not_mixed_with_these(study: Path, steps: Steps, tmp_path: Path) -> None:
    reproduce(study, "--out", "again")
    (tmp_path / "copy").symlink_to(Plan.of(study).settings["model"])
    assert "changed      model = copy" in reproduce(study, "--out", "other", "--set", "model=copy").stdout
    done = reproduce(study, "--out", "again", "--set", "model=copy")
    assert done.exit_code == 2
    assert "settings model was" in done.stderr
    Path("again/reproduce.jsonl").write_text('{"schema": "other"}\n')
    assert "no log of a reproduction" in reproduce(study, "--out", "again").stderr


# Processes


def test_a_real_step_measures(study: Path, tiny_llama_dir: Path) -> None:
    prompt_file(Path("prompts.jsonl"), 2)
    plan = (study / PLAN_FILE).read_text()
    plan = plan.replace(
        "--prompts builtin", "--prompts prompts.jsonl --num-prompts 2 --max-new-tokens 4 --dtype float32"
    )
    plan = plan.replace("bench --model", "bench --skip-set 'attn 1' --no-references --runner reference --model")
    (study / PLAN_FILE).write_text(plan)
    done = reproduce(study, "--out", "again", "--step", "first", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    claim = json.loads(done.stdout)["claims"][0]
    assert claim["here"]["value"] > 0
    assert claim["verdict"] != "was not measured"


WAITS = """#!{python}
import sys, time
from pathlib import Path
print("half")
try:
    Path({ready!r}).touch()
    time.sleep(300)
except KeyboardInterrupt:
    Path({kept!r}).touch()
"""


def test_ctrl_c_reaches_a_step_once_and_waits_for_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, kept, script = (tmp_path / name for name in ("ready", "kept", "program"))
    script.write_text(WAITS.format(python=sys.executable, ready=str(ready), kept=str(kept)))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    def interrupt() -> None:
        while not ready.exists():
            sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_command(Command("x", ("doctor",), ((),), tmp_path / "saved"), quiet=False)
    assert (kept.exists(), (tmp_path / "saved").exists()) == (True, False)


def test_what_a_step_prints_is_saved_and_its_level_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "program"
    script.write_text(
        f'#!{sys.executable}\nimport os, sys\nprint(os.environ["SELFSPEC_TUNE_CPU_LEVEL"], *sys.argv[1:])\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    command = Command("x", ("doctor", "--json"), ((), ()), tmp_path / "deep" / "saved", "x86-64")
    assert run_command(command, quiet=True) == 0
    assert (tmp_path / "deep" / "saved").read_text() == "x86-64 -m selfspec_tune doctor --json -q\n"
