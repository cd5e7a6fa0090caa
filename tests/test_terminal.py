"""No text of others' making steers a terminal, wherever it comes from; ordinary text of any script passes."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner, Result

from selfspec_tune.checks import visible, visible_line
from selfspec_tune.cli.app import app
from selfspec_tune.cli.output import SafeConsole
from selfspec_tune.draft import Draft
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.report.progress import LiveReporter, PlainReporter
from selfspec_tune.reporting import Candidate, Progress, Reporter
from selfspec_tune.results import BenchResult
from tests.results_kit import MODEL, bench_result, skip_config

STEERING = "\x1b]0;pwn\x07\x1b[31mred\x1b[2J\x9b1m\x00\x08\r\x7f\u202eabc\u2066\u2028"
ORDINARY = "日本語 · naïve — 👩‍💻🏳️‍🌈 עברית العربية é\u200f ≠ 3×"


def is_safe(text: str) -> bool:
    return not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066\u2028" for c in text)


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [*map(str, arguments)])


def test_what_steers_a_terminal_is_written_out() -> None:
    assert is_safe(visible(STEERING))
    assert visible("\x1b[31m") == r"\u001b[31m"
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible_line("a\nnote: b") == r"a\nnote: b"


def test_ordinary_text_of_any_script_is_left_alone() -> None:
    assert visible(ORDINARY) == ORDINARY


def test_a_name_that_is_no_text_can_be_printed() -> None:
    visible(os.fsdecode(b"\xff.json")).encode()


def test_json_stays_json() -> None:
    assert json.loads(visible(json.dumps(STEERING, ensure_ascii=False))) == STEERING


def events(reporter: Reporter) -> None:
    reporter.stage("load", STEERING)
    reporter.progress(Progress(1, 2, detail=STEERING))
    reporter.trial(Candidate(0, STEERING, Draft(SkipSet(4)), None))
    reporter.best(Candidate(0, STEERING, Draft(SkipSet(4)), None, disagreement=STEERING))
    reporter.notice(f"first\n[done] {STEERING}")
    reporter.stage("end")


def test_plain_lines_are_safe_and_each_is_one_line() -> None:
    stream = io.StringIO()
    events(PlainReporter(stream))
    assert is_safe(stream.getvalue())
    assert not any(line.startswith("[done]") for line in stream.getvalue().splitlines())


def test_the_live_display_is_safe() -> None:
    stream = io.StringIO()
    console = SafeConsole(file=stream, force_terminal=True, no_color=True, width=300, legacy_windows=False)
    with LiveReporter(console) as reporter:
        events(reporter)
    assert r"\u001b]0;pwn\u0007" in stream.getvalue()
    for stranger in ("\x1b]0;", "\x07", "\x1b[31m", "\x9b", "\u202e"):
        assert stranger not in stream.getvalue()


def test_cells_and_titles_of_tables_are_safe() -> None:
    stream = io.StringIO()
    table = Table(STEERING, title=Text(STEERING))
    table.add_row(STEERING)
    SafeConsole(file=stream, width=60).print(table, ORDINARY)
    assert is_safe(stream.getvalue())
    assert ORDINARY in stream.getvalue()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A study whose every name would steer a terminal."""
    name = f"{STEERING}\nnote: forged"
    model = MODEL.model_copy(update={"id": name, "name": name, "dtype": name, "fingerprint": name})
    provenance = {
        "created": name,
        "selfspec_tune": {"version": name, "commit": name},
        "packages": {name: name},
        "hardware": {"cpu": name, "gpu": name},
        "prompts": {"source": name, "calibration": [name]},
        "search": {"start_from": [{"name": name}]},
    }
    score = skip_config().score.model_copy(update={"split": name, "withheld_because": [name]})
    skip_config(model=model, provenance=provenance, score=score).save(tmp_path / "skip.json")
    bench = bench_result(model=model, split=name, warnings=[name], provenance=provenance)
    methods = [m.model_copy(update={"name": name, "description": name, "unavailable": None}) for m in bench.methods]
    tasks = {name: next(iter(methods[1].per_task.values())), "code": methods[1].per_task["code"]}
    methods[1] = methods[1].model_copy(update={"per_task": tasks, "name": "self-speculative"})
    BenchResult.model_validate(bench.model_copy(update={"methods": methods}).to_dict()).save(tmp_path / "bench.json")
    return tmp_path


@pytest.mark.parametrize("what", ["", "skip.json", "bench.json"])
def test_names_in_a_study_are_shown_safely(hostile: Path, what: str) -> None:
    result = run("show", hostile / what)
    assert result.exit_code == 0, result.output
    assert is_safe(result.output)
    assert r"\u001b" in result.stdout
    assert not any(line.startswith("note: forged") for line in result.stdout.splitlines())


def test_names_in_json_read_back_as_they_were(hostile: Path) -> None:
    result = run("show", hostile / "skip.json", "--json")
    assert is_safe(result.stdout)
    assert json.loads(result.stdout)["model"]["id"].startswith(STEERING)


def dialect(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_errors_are_safe_whatever_they_name(tmp_path: Path, tiny_llama_dir: Path) -> None:
    entry = {"attention": [1], "mlp": []}
    several = dialect(tmp_path / "several.json", {STEERING: entry, "b": entry})
    strange = dialect(tmp_path / "strange.json", {STEERING: [1]})
    keys = dialect(tmp_path / "keys.json", {"attention": [1], STEERING: []})
    schema = dialect(tmp_path / "schema.json", {"schema": f"selfspec-tune/{STEERING}", "version": 1})
    named = dialect(tmp_path / "\x1b[31mred\u202e.json", {"schema": 5})
    for command in (
        ("show", several, "--model", tiny_llama_dir),
        ("export", several, "--to", "self-sd", "--model", tiny_llama_dir),
        ("show", strange, "--model", tiny_llama_dir),
        ("show", keys, "--model", tiny_llama_dir),
        ("show", schema),
        ("bench", schema),
        ("show", named),
        ("bench", "--model", STEERING, "--skip-set", "mlp 1"),
        ("bench", "--model", tiny_llama_dir, "--skip-set", STEERING),
        ("search", "--task", STEERING, "--prompts", "builtin"),
        ("search", "--prompts", f"{STEERING}.jsonl"),
    ):
        result = run(*command)
        assert result.exit_code == 2, (command, result.output)
        assert is_safe(result.output), command
        assert len(result.stderr.splitlines()) <= 4, result.stderr


def test_the_line_that_says_what_is_loaded_is_safe(tmp_path: Path, tiny_llama_dir: Path) -> None:
    folder = tmp_path / "\x1b[31mmodel\x07"
    folder.symlink_to(tiny_llama_dir)
    result = run("bench", "--model", folder, "--skip-set", "mlp 9", "--num-prompts", "4", "--max-new-tokens", "4")
    assert r"\u001b[31mmodel\u0007" in result.stderr
    assert is_safe(result.output)


def test_what_templates_prompts_and_tasks_say_is_safe(tmp_path: Path, tiny_llama_dir: Path) -> None:
    model = Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))
    (model / "chat_template.jinja").write_text("{{ raise_exception('" + "\x1b[31mred\x07" + "') }}")
    rows = [{"id": f"{STEERING}{number}", "task": STEERING, "prompt": f"tell {number}"} for number in range(8)]
    prompts = tmp_path / "set.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--prompts", prompts, "--num-prompts", "4", "--max-new-tokens", "4", "--no-references")
    for template, has_answers in (("auto", False), ("raw", True)):
        command = ("bench", "--model", model, "--skip-set", "mlp 1", *options, "--template", template)
        result = run(*command, "--dtype", "float32", "--device", "cpu")
        assert (result.exit_code == 0) == has_answers, result.output
        assert is_safe(result.output)
