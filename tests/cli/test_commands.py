from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import selfspec_tune
from selfspec_tune.cli.app import app
from selfspec_tune.cli.exits import RESUMABLE
from selfspec_tune.errors import PromptError, StorageError
from selfspec_tune.models.aliases import ALIASES
from selfspec_tune.plans.registry import FAMILIES
from selfspec_tune.reporting import Progress, Reporter
from selfspec_tune.requests import BenchRequest, DraftOptions, ExtraMemory, ModelOptions, PromptOptions, SearchRequest
from selfspec_tune.results import BenchResult, SkipConfig
from tests.results_kit import SKIP, bench_result, save_study, skip_config, transfer_result


@dataclass
class Outcome:
    """Stands in for the search's outcome."""

    skip_config: SkipConfig
    bench: BenchResult | None
    out: Path
    interrupted: bool = False


@dataclass
class Plan:
    """Stands in for the search's plan."""

    model: dict[str, Any] = field(default_factory=lambda: {"name": "tiny", "dtype": "float32", "device": "cpu"})
    splits: dict[str, int] = field(default_factory=lambda: {"calibration": 16, "selection": 16, "test": 32})
    prompt_tokens: dict[str, int] = field(default_factory=lambda: {"min": 12, "median": 90, "max": 700})
    first_prompts: dict[str, str] = field(default_factory=lambda: {"code": "<s>def f():\n\x1b[2J\treturn"})
    num_sublayers: int = 24
    stages: list[tuple[str, str, float | None]] = field(
        default_factory=lambda: [("calibrate", "16 prompts", 65.0), ("trials", "until the time ends", None)]
    )
    total_seconds: float | None = 725.0
    memory_bytes: dict[str, int] = field(default_factory=lambda: {"weights": 270 << 20, "cache": 3 << 29})
    config: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Library:
    """The search and bench packages, scripted: records requests, then answers or raises."""

    searches: list[SearchRequest] = field(default_factory=list)
    benches: list[BenchRequest] = field(default_factory=list)
    bench: BenchResult = field(default_factory=bench_result)
    plan: Plan = field(default_factory=Plan)
    is_interrupted: bool = False
    error: BaseException | None = None

    def run_search(self, request: SearchRequest, reporter: Reporter) -> Outcome:
        self.searches.append(request)
        self._work(reporter)
        return Outcome(skip_config(), self.bench, request.out, self.is_interrupted)

    def plan_search(self, request: SearchRequest, reporter: Reporter) -> Plan:
        self.searches.append(request)
        self._work(reporter)
        return self.plan

    def run_bench(self, request: BenchRequest, reporter: Reporter) -> BenchResult:
        self.benches.append(request)
        self._work(reporter)
        return self.bench

    def run_per_task(self, request: SearchRequest, reporter: Reporter) -> SimpleNamespace:
        self.searches.append(request)
        self._work(reporter)
        return SimpleNamespace(transfer=transfer_result(), bench=self.bench)

    def plan_per_task(self, request: SearchRequest, reporter: Reporter) -> dict[str, Plan]:
        return {name: self.plan_search(request, reporter) for name in ("all", "code")}

    def _work(self, reporter: Reporter) -> None:
        reporter.stage("load", "tiny")
        reporter.progress(Progress(1, 2))
        print("a library that chatters on standard output")
        if self.error is not None:
            raise self.error


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    """The scripted library in place of the real one, in an empty working directory."""
    fake = Library()
    for name in ("search", "bench"):
        module = ModuleType(f"selfspec_tune.{name}")
        vars(module).update(run_search=fake.run_search, plan_search=fake.plan_search, run_bench=fake.run_bench)
        vars(module).update(run_per_task=fake.run_per_task, plan_per_task=fake.plan_per_task)
        monkeypatch.setitem(sys.modules, f"selfspec_tune.{name}", module)
    monkeypatch.chdir(tmp_path)
    return fake


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, [str(part) for part in arguments])


def test_a_skip_set_that_cannot_be_read_is_refused_before_a_model_is_looked_for() -> None:
    for text in ("foo", "attn 3-", "attn 3-1", ""):
        result = CliRunner().invoke(app, ["bench", "--model", "nowhere/to-be-found", "--skip-set", text])
        assert result.exit_code == 2
        assert "[load]" not in result.stderr


def test_help_names_every_command() -> None:
    page = run("--help").stdout
    for command in ("search", "compare", "bench", "show", "export", "models"):
        assert command in page


def test_compare_explains_the_options_that_it_shares_with_search() -> None:
    page = run("compare", "--help").stdout
    for words in ("Alias (see", "Ways to search", "Time for the search"):
        assert words in " ".join(page.replace("│", " ").split())


def test_version_is_the_packages() -> None:
    assert run("--version").stdout.strip() == selfspec_tune.__version__


def test_a_bare_search_asks_for_the_defaults(library: Library) -> None:
    assert run("search").exit_code == 0
    (request,) = library.searches
    assert request == SearchRequest(out=Path("studies/smollm2-135m-builtin"), timeout_seconds=2700)


def test_search_options_reach_the_request(library: Library) -> None:
    options = "--model org/Tiny --prompts set.jsonl --num-prompts 40 --max-new-tokens 96 --temperature 0.7"
    options += " --top-p 0.9 --top-k 50 --template raw --out here --trials 9 --timeout 1h --seed 3 --dtype bfloat16"
    options += " --device cuda:1 --runner reference --policy adaptive --max-draft-tokens 8 --exit-threshold 0.5"
    options += (
        " --draft-vocab 8192 --ngram --draft-precision int4 --extra-memory 2GiB --trust-remote-code --allow-pickle"
    )
    assert run("search", *options.split()).exit_code == 0
    assert library.searches == [
        SearchRequest(
            out=Path("here"),
            model=ModelOptions("org/Tiny", "bfloat16", "cuda:1", "reference", True, True),
            prompts=PromptOptions(
                source="set.jsonl",
                num_prompts=40,
                max_new_tokens=96,
                template="raw",
                temperature=0.7,
                top_p=0.9,
                top_k=50,
                seed=3,
            ),
            draft=DraftOptions("adaptive", 8, 0.5, "8192", True, "int4", ExtraMemory(num_bytes=2 << 30)),
            trials=9,
            timeout_seconds=3600,
        )
    ]


@pytest.mark.parametrize("command", [("search",), ("search", "--dry-run")])
def test_starts_reach_the_request_in_their_order(library: Library, command: tuple[str, ...]) -> None:
    assert run(*command, "--start-from", "old", "--start-from", "attn 2-9 · mlp 3,5").exit_code == 0
    assert library.searches[0].start_from == ("old", "attn 2-9 · mlp 3,5")


def test_compare_takes_starts_too() -> None:
    assert "--start-from" in run("compare", "--help").stdout


def test_a_plan_names_what_it_starts_from(library: Library) -> None:
    library.plan.config["start_from"] = {"studies/old": "0123456789abcdef"}
    assert "studies/old" in run("search", "--dry-run").stdout


def test_search_prints_the_verdict_and_keeps_progress_apart(library: Library) -> None:
    result = run("search")
    assert "on 32 held-out prompts" in result.stdout
    assert "Written to studies/smollm2-135m-builtin" in result.stdout
    assert "[load] tiny" in result.stderr
    assert "chatters" not in result.stdout


def test_search_json_is_one_object_and_nothing_else(library: Library) -> None:
    result = run("search", "--json", "--out", "here")
    value = json.loads(result.stdout)
    assert value == {"skip_config": skip_config().to_dict(), "bench": library.bench.to_dict(), "out": "here"}


def test_quiet_prints_the_result_only(library: Library) -> None:
    result = run("search", "--quiet")
    assert "[load]" not in result.stderr
    assert "on 32 held-out prompts" in result.stdout


@pytest.mark.parametrize("extra", [(), ("--json",)])
def test_an_interrupted_search_shows_what_was_found_and_exits_with_130(
    library: Library, extra: tuple[str, ...]
) -> None:
    library.is_interrupted = True
    result = run("search", *extra)
    assert result.exit_code == 130
    assert RESUMABLE in result.stderr
    assert "attention" in result.stdout or "attn" in result.stdout


def test_ctrl_c_says_how_to_resume(library: Library) -> None:
    library.error = KeyboardInterrupt()
    result = run("search")
    assert result.exit_code == 130
    assert result.stderr.strip().endswith(RESUMABLE)


def test_an_interrupted_bench_does_not_promise_to_resume(library: Library) -> None:
    library.error = KeyboardInterrupt()
    result = run("bench")
    assert result.exit_code == 130
    assert result.stderr.strip().endswith("interrupted")


def test_a_dry_run_prints_the_plan_and_searches_nothing(library: Library) -> None:
    result = run("search", "--dry-run")
    for part in (
        "16 calibration",
        "median 90",
        "270 MiB weights, 1.5 GiB cache",
        "calibrate",
        "1:05",
        "12:05",
        r"<s>def f():\n\x1b[2J\treturn",
    ):
        assert part in result.stdout
    assert "\x1b[2J" not in result.stdout
    library.plan = Plan(total_seconds=None)
    assert "cannot be estimated" in run("search", "--dry-run").stdout
    assert json.loads(run("search", "--dry-run", "--json").stdout)["num_sublayers"] == 24


# One search a task


def test_a_search_can_be_of_some_tasks_alone(library: Library) -> None:
    assert run("search", "--task", "qa", "--task", "code").exit_code == 0
    assert run("bench", "--task", "code").exit_code == 0
    assert library.searches[0].prompts.tasks == ("code", "qa")
    assert dict(library.benches[0].prompt_overrides)["tasks"] == ("code",)


def test_a_search_per_task_prints_the_matrix_and_the_verdict_on_routers(library: Library) -> None:
    result = run("search", "--per-task", "--out", "here")
    assert result.exit_code == 0
    for words in ("draft of", "summarise", "No router wins", "Written to here"):
        assert words in result.stdout
    assert "chatters" not in result.stdout


def test_a_search_per_task_as_json_is_one_object(library: Library) -> None:
    value = json.loads(run("search", "--per-task", "--json", "--out", "here").stdout)
    assert value["schema"] == "selfspec-tune/transfer"
    assert value["bench"] == library.bench.to_dict()
    assert [router["name"] for router in value["routers"]] == ["own task", "nearest task"]


def test_ctrl_c_in_a_search_per_task_says_how_to_resume(library: Library) -> None:
    library.error = KeyboardInterrupt()
    result = run("search", "--per-task")
    assert result.exit_code == 130
    assert result.stderr.strip().endswith(RESUMABLE)


def test_a_dry_run_per_task_prints_a_plan_for_each_search(library: Library) -> None:
    shown = run("search", "--per-task", "--dry-run").stdout
    assert shown.count("16 calibration") == 2
    assert list(json.loads(run("search", "--per-task", "--dry-run", "--json").stdout)) == ["all", "code"]


def test_the_matrix_is_drawn_where_asked_for(library: Library, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run("search", "--per-task", "--plot", tmp_path / "new" / "map.svg").exit_code == 0
    assert (tmp_path / "new" / "map.svg").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--plot map.svg", "--plot map.svg: it draws what --per-task finds"),
        ("--per-task --plot map.pdf", "expected a file that ends in .png or .svg"),
        ("--trials 0", "--trials 0: expected at least 1"),
        ("--timeout 0", "--timeout 0s: expected a positive duration"),
        ("--timeout soon", "'soon' is no duration"),
        ("--num-prompts 0", "--num-prompts 0: expected at least 1"),
        ("--max-new-tokens 1", "--max-new-tokens 1: expected at least 2"),
        ("--top-p 0", "--top-p 0.0: expected above 0"),
        ("--draft-vocab many", "--draft-vocab 'many': expected auto, full"),
        ("--policy greedy", "greedy"),
        ("--draft-experts 0", "--draft-experts '0': expected auto, same, or a positive number of experts"),
        ("--draft-precision int3", "'int3' in the draft precision 'int3' is not same, int8 or int4"),
        ("--extra-memory lots", "--extra-memory 'lots': expected a share of the weights such as 30%"),
        ("--extra-memory 5", "a size such as 2GiB or 512MiB, or 0 for none"),
        ("--dtype int3", "int3"),
        ("--max-draft-tokens 0", "--max-draft-tokens"),
    ],
)
def test_a_bad_option_exits_with_2_before_anything_runs(library: Library, options: str, message: str) -> None:
    result = run("search", *options.split())
    assert result.exit_code == 2
    assert message in result.stderr
    assert library.searches == []


def test_a_bench_takes_the_draft_from_the_file_unless_told_otherwise(library: Library) -> None:
    run("bench")
    run("bench", "--policy", "cost-aware", "--no-ngram", "--draft-precision", "int8 attn 0; head int4")
    run("bench", "--ngram", "--draft-experts", "2")
    overrides = [dict(request.draft_overrides) for request in library.benches]
    assert overrides == [
        {},
        {"policy": "cost-aware", "ngram": False, "precision": "int8 attn 0; head int4"},
        {"ngram": True, "experts": "2"},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "never"], "never"),
        (["--draft-precision", "int4 attn 1; int8 attn 1"], "names attn 1 twice"),
        (["--draft-experts", "auto"], "--draft-experts 'auto': expected same, or a positive number of experts"),
    ],
)
def test_a_bad_draft_for_a_bench_exits_with_2(library: Library, options: list[str], message: str) -> None:
    result = run("bench", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert library.benches == []


def test_a_usage_error_of_the_library_is_one_line_and_exits_with_2(library: Library) -> None:
    library.error = PromptError("set.jsonl holds no prompts; expected at least one. Check the file.")
    result = run("search", "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == f"error: {library.error}"
    assert "Traceback" not in result.stderr


def test_a_failed_run_exits_with_1(library: Library) -> None:
    library.error = StorageError("Cannot write here.")
    assert run("bench").exit_code == 1


def test_the_unexpected_is_one_line_with_a_hint(library: Library) -> None:
    library.error = ValueError("boom\nwith details")
    result = run("bench")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: ValueError: boom (run with --debug to see where)"


def test_debug_shows_the_traceback(library: Library) -> None:
    library.error = PromptError("nothing there")
    result = run("search", "--debug")
    assert "Traceback" in result.stderr
    assert "in _work" in result.stderr
    assert result.exit_code == 2


def test_a_bare_bench_overrides_nothing(library: Library) -> None:
    assert run("bench").exit_code == 0
    assert library.benches == [BenchRequest()]


def test_bench_passes_on_only_what_was_given(library: Library) -> None:
    options = "a.json b.json --model tiny --num-prompts 12 --temperature 0 --rounds 2 --reference-prompts 4"
    options += " --no-references --allow-calibration --allow-pickle"
    assert run("bench", *options.split(), "--skip-set", "attn 2-3", "--skip-set", "c.json").exit_code == 0
    assert library.benches == [
        BenchRequest(
            skip_files=(Path("a.json"), Path("b.json")),
            skip_sets=("attn 2-3", "c.json"),
            model_overrides=(("name", "tiny"), ("allow_pickle", True)),
            prompt_overrides=(("num_prompts", 12), ("temperature", 0.0)),
            rounds=2,
            reference_prompts=4,
            uniform_and_random=False,
            allow_calibration=True,
        )
    ]


def test_bench_passes_on_that_the_parts_are_asked_for(library: Library) -> None:
    assert run("bench", "--parts").exit_code == 0
    assert library.benches == [BenchRequest(parts=True)]


def test_bench_passes_on_the_rivals_that_were_asked_for(library: Library) -> None:
    assert run("bench", "--rivals", "--draft-model", "small", "--early-exit", "9").exit_code == 0
    assert library.benches == [BenchRequest(rivals=True, draft_model="small", early_exit=9)]


@pytest.mark.parametrize("options", ["--draft-model small", "--early-exit 9"])
def test_a_rivals_option_without_rivals_is_refused(library: Library, options: str) -> None:
    result = run("bench", *options.split())
    assert result.exit_code == 2
    assert f"{options}: it sets up a rival; add --rivals" in result.stderr
    assert library.benches == []


def test_bench_json_is_the_result_and_nothing_else(library: Library) -> None:
    value = json.loads(run("bench", "--json").stdout)
    assert value == library.bench.to_dict()
    assert (value["schema"], value["version"]) == ("selfspec-tune/bench", 1)


def test_bench_writes_the_files_it_is_asked_for(library: Library) -> None:
    tables = ("--csv", "t/a.csv", "--parquet", "t/a.parquet")
    result = run("bench", *tables, "--out", "t/bench.json", "--spec-bench", "t/ours.jsonl")
    assert result.exit_code == 0, result.stderr
    names = [method.name for method in library.bench.methods]
    assert list(pd.read_csv("t/a.csv")["name"]) == names
    assert list(pd.read_parquet("t/a.parquet")["name"]) == names
    assert BenchResult.load("t/bench.json").to_dict() == library.bench.to_dict()
    rows = [json.loads(line) for line in Path("t/ours.jsonl").read_text().splitlines()]
    assert len(rows) == 32
    assert {row["model_id"] for row in rows} == {"self-speculative"}
    assert not Path("t/ours-autoregressive.jsonl").exists()


def test_spec_bench_rows_of_the_baseline_need_the_runs_text(library: Library) -> None:
    library.bench = bench_result(run_fields={"text": "an answer"})
    assert run("bench", "--spec-bench", "ours.jsonl").exit_code == 0
    rows = [json.loads(line) for line in Path("ours-autoregressive.jsonl").read_text().splitlines()]
    assert {row["model_id"] for row in rows} == {"autoregressive"}
    assert rows[0]["choices"][0]["turns"] == ["an answer"]


def test_an_output_that_cannot_be_written_stops_the_bench_before_it_runs(library: Library) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    assert run("bench", "--csv", "file/a.csv").exit_code == 1
    result = run("bench", "--out", "folder")
    assert result.exit_code == 2
    assert "folder is a folder" in result.stderr
    assert library.benches == []


@pytest.mark.parametrize("option", ["--csv", "--parquet", "--spec-bench", "--out"])
def test_a_folder_that_takes_no_file_stops_the_bench_before_it_runs(
    library: Library, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    result = run("bench", option, "folder/a.json")
    assert result.exit_code == 1
    assert "Cannot write folder/a.json: Read-only file system. Nobody can write there as it is" in result.stderr
    assert library.benches == []


def test_show_takes_the_newest_study(library: Library) -> None:
    save_study(Path("studies/old"))
    newer = save_study(Path("studies/new"), skip_config(provenance={"seed": 99}))
    os.utime("studies/old/skip.json", (1, 1))
    assert "99" in run("show").stdout
    value = json.loads(run("show", "--json").stdout)
    assert value["out"] == str(newer)
    assert value["bench"]["schema"] == "selfspec-tune/bench"


def test_show_reads_single_files(library: Library) -> None:
    study = save_study(Path("study"))
    assert json.loads(run("show", study / "skip.json", "--json").stdout) == skip_config().to_dict()
    assert json.loads(run("show", study / "bench.json", "--json").stdout) == bench_result().to_dict()
    assert "attn ██···████·██" in run("show", study / "skip.json").stdout
    assert "Baseline against itself" in run("show", study / "bench.json").stdout
    both = run("show", study).stdout
    assert "attn ██···████·██" in both
    assert "Baseline against itself" in both


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{", "not valid JSON"), ('{"schema": "other"}', "expected schema")],
)
def test_show_explains_a_bad_file(library: Library, content: str | None, message: str) -> None:
    if content is not None:
        Path("skip.json").write_text(content)
    result = run("show", "skip.json")
    assert result.exit_code == 2
    assert message in result.stderr


def test_show_names_what_it_takes_instead_of_our_other_files(library: Library) -> None:
    Path("doctor.json").write_text('{"schema": "selfspec-tune/doctor"}')
    Path("study.toml").write_text("")
    for file, said in (("doctor.json", "Expected a study's folder"), ("study.toml", "Give its folder")):
        result = run("show", file)
        assert (result.exit_code, said in result.stderr) == (2, True)


def test_show_without_any_study_says_how_to_make_one(library: Library) -> None:
    result = run("show")
    assert result.exit_code == 2
    assert "selfspec-tune search" in result.stderr
    Path("empty").mkdir()
    assert "holds neither skip.json nor bench.json" in run("show", "empty").stderr


def test_export_writes_dialects(library: Library) -> None:
    study = save_study(Path("study"))
    value = json.loads(run("export", study / "skip.json", "--to", "self-sd").stdout)
    assert value == {"tiny": SKIP.to_dict()}
    assert run("export", study / "skip.json", "--to", "swift", "--task", "qa", "--out", "s.json").exit_code == 0
    assert json.loads(Path("s.json").read_text()) == {"tiny_qa": SKIP.to_dict()}


def test_export_explains_what_a_dialect_cannot_say(library: Library) -> None:
    study = save_study(Path("study"))
    result = run("export", study / "skip.json", "--to", "layerskip")
    assert result.exit_code == 2
    assert "layers" in result.stderr


def test_export_converts_other_dialects_once_the_model_is_named(library: Library) -> None:
    Path("flags.json").write_text(json.dumps([0, 1] * 40))
    unnamed = run("export", "flags.json", "--to", "self-sd")
    assert unnamed.exit_code == 2
    assert "name it with --model" in unnamed.stderr
    named = run("export", "flags.json", "--to", "self-sd", "--model", "llama-2-13b")
    assert json.loads(named.stdout) == {"llama-2-13b": {"attention": [], "mlp": list(range(40))}}


def test_export_takes_the_depth_from_a_local_model(library: Library) -> None:
    Path("exit.json").write_text('{"exit_layer": 4}')
    Path("local").mkdir()
    Path("local/config.json").write_text('{"num_hidden_layers": 6}')
    value = json.loads(run("export", "exit.json", "--to", "economize", "--model", "local").stdout)
    assert value == {"skip_layers": [5, 6]}
    Path("local/config.json").write_text("{}")
    assert "no num_hidden_layers" in run("export", "exit.json", "--to", "economize", "--model", "local").stderr
    unknown = run("export", "exit.json", "--to", "economize", "--model", "lama-2-13b")
    assert unknown.exit_code == 2
    assert "Did you mean llama-2-13b" in unknown.stderr


def test_models_lists_families_and_aliases() -> None:
    value = json.loads(run("models", "--json").stdout)
    aliases, families = value["aliases"], value["families"]
    assert aliases.keys() == ALIASES.keys()
    assert aliases["smollm2-135m"]["embedded"] is True
    assert aliases["mistral-7b"]["runner"] == aliases["llama-2-7b"]["runner"] != "reference"
    assert families["llama"] == {
        "served_by": ["native", "graphs", "fast"],
        "missing": {"native": [], "graphs": [], "fast": []},
        "reason": None,
    }
    assert "recurrent state" in value["refused"]["qwen3_next"]
    assert "latent vector" in value["reference_only"]["deepseek_v3"]
    printed = run("models").stdout
    assert "embedded" in printed
    assert f"Of {len(families)} rows of {len(FAMILIES)} families, native serves" in printed
