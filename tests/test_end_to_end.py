"""The program as its users run it: real processes, offline, on a tiny checkpoint under a real model's name."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from rich.console import Console

from selfspec_tune.cli.exits import RESUMABLE
from selfspec_tune.report.progress import LiveReporter
from selfspec_tune.results import BenchResult, SkipConfig, StudyConfig
from tests import kit
from tests.journal import EndedTrials, ended_trials
from tests.search_kit import prompt_file, search_request

ALIAS, HUB_ID = "llama-2-13b", "meta-llama/Llama-2-13b-hf"
NUM_LAYERS = 4
STUDY = Path("studies/llama-2-13b-small")
BUDGET = ("--trials", "2", "--timeout", "5m")
RESUMED_BUDGET = ("--trials", "6", "--timeout", "5m")
SEARCH = (
    *("search", "--model", ALIAS, "--prompts", "small.jsonl", "--num-prompts", "16", "--max-new-tokens", "24"),
    *("--dtype", "float32", "--device", "cpu"),
)
PROGRAM = (sys.executable, "-m", "selfspec_tune")
SECONDS = 240  # for one process, on a slow and busy machine


def plant(home: Path) -> Path:
    """A folder with a hub cache that holds the alias's model, and a file of prompts; returns it."""
    checkpoint = kit.tiny_llama(home / "made", layers=NUM_LAYERS, heads=4, kv_heads=4, tied=False)
    kit.plant_in_hub_cache(home / "hf" / "hub", HUB_ID, checkpoint)
    subjects = ("the sea", "a train", "the harvest", "an island", "the north", "a letter", "the rain", "a tune")
    verbs = ("tell us about", "list the sounds of", "describe")
    texts = [(verb, f"{verb} {subject} and then say what it is not") for verb in verbs for subject in subjects]
    rows = [json.dumps({"prompt": text, "task": verb.split()[0]}) for verb, text in texts]
    (home / "small.jsonl").write_text("\n".join(rows) + "\n")
    return home


def environment(home: Path) -> dict[str, str]:
    """This process's variables, with an own hub cache, without a network, and with a wide plain terminal."""
    root = Path(__file__).parents[1]
    settings = {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    dropped = ("HF_HUB_CACHE", "COV_CORE_SOURCE", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | settings | {"COLUMNS": "200", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; it must succeed."""
    done = subprocess.run(
        (*PROGRAM, *arguments), cwd=home, env=environment(home), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``search --model llama-2-13b`` has run to its end."""
    folder = plant(tmp_path_factory.mktemp("alias"))
    done = run(folder, *SEARCH, *BUDGET)
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_a_search_by_alias_writes_its_three_files(home: Path) -> None:
    config = SkipConfig.load(home / STUDY / "skip.json")
    assert (config.model.id, config.model.name, config.model.num_layers) == (HUB_ID, ALIAS, NUM_LAYERS)
    assert config.provenance["search"]["trials"] == 2
    assert BenchResult.load(home / STUDY / "bench.json").split == "test"
    assert StudyConfig.load(home / STUDY / "study.toml").model == HUB_ID
    assert f"Written to {STUDY}" in (home / "stdout.txt").read_text()


def test_the_skip_file_keeps_the_contract(home: Path) -> None:
    value = json.loads((home / STUDY / "skip.json").read_text())
    assert (value["schema"], value["version"]) == ("selfspec-tune/skip-config", 1)
    assert {"id", "fingerprint", "num_layers"} <= value["model"].keys()
    assert value["skip"].keys() >= {"attention", "mlp"}
    assert value["draft"].keys() >= {"policy", "max_draft_tokens", "exit_threshold"}
    assert value["score"]["verdict"] in ("faster", "not_faster", "undecided")
    splits = [set(value["provenance"]["prompts"][split]) for split in ("calibration", "selection", "test")]
    assert [len(split) for split in splits] == [4, 4, 8]
    assert len(set.union(*splits)) == 16


def test_in_float32_the_search_loses_no_token(home: Path) -> None:
    bench = BenchResult.load(home / STUDY / "bench.json")
    assert {run.lossless for run in bench.runs} <= {"identical", "numerical_tie"}
    assert len({(run.method, run.prompt_id, run.round) for run in bench.runs}) == len(bench.runs)


def test_a_bare_bench_measures_the_newest_study(home: Path) -> None:
    page = " ".join(run(home, "bench").stdout.split())  # lines wrap anywhere
    for part in ("autoregressive", "self-speculative", "hf-generate", "Baseline against itself", "test prompts"):
        assert part in page


def test_bench_json_is_one_object_that_keeps_the_contract(home: Path) -> None:
    done = run(home, "bench", str(STUDY / "skip.json"), "--skip-set", "attn 1 mlp 2", "--json")
    assert len(done.stdout.splitlines()) == 1
    value = json.loads(done.stdout)
    assert (value["schema"], value["version"]) == ("selfspec-tune/bench", 1)
    names = [method["name"] for method in value["methods"]]
    assert names[0] == "autoregressive"
    assert names.count("self-speculative") == 2
    assert "hf-generate" in names
    for method in value["methods"]:
        check_method(method)
    assert value["provenance"]["model"]["id"] == HUB_ID


def check_method(method: dict[str, Any]) -> None:
    """The fields of a method that others script against."""
    assert method.keys() >= {"name", "id", "skip", "acceptance_rate", "mean_accepted_tokens"}
    assert method["tokens_per_second"] > 0
    for name in ("decode_speedup", "end_to_end_speedup"):
        assert method[name].keys() == {"value", "low", "high"}
    assert method["lossless"].keys() >= {"identical", "numerical_ties", "mismatches"}
    assert method["lossless"]["mismatches"] == 0


def test_bench_reads_no_prompt_that_the_search_read(home: Path) -> None:
    prompts = json.loads((home / STUDY / "skip.json").read_text())["provenance"]["prompts"]
    value = json.loads(run(home, "bench", "--num-prompts", "12", "--no-references", "--json").stdout)
    measured = {pair["prompt_hash"] for pair in value["runs"]}
    assert len(measured) == 12
    assert measured.isdisjoint({*prompts["calibration"], *prompts["selection"]})
    assert not value["in_sample"]


def test_show_prints_what_was_found(home: Path) -> None:
    page = run(home, "show").stdout
    config = SkipConfig.load(home / STUDY / "skip.json")
    assert ALIAS in page
    assert str(config.skip_set()) in page
    assert config.model.fingerprint in page


def test_export_writes_the_skip_set_under_the_alias(home: Path) -> None:
    config = SkipConfig.load(home / STUDY / "skip.json")
    done = run(home, "export", str(STUDY / "skip.json"), "--to", "self-sd")
    assert json.loads(done.stdout) == {ALIAS: config.skip_set().to_dict()}


def test_a_finished_search_is_not_repeated(home: Path) -> None:
    before = {file.name: file.read_bytes() for file in (home / STUDY).glob("*.json*") if file.name != "state.json"}
    run(home, *SEARCH, *BUDGET)
    assert {name: (home / STUDY / name).read_bytes() for name in before} == before


class Process:
    """A command in a process of its own, which is ended at a moment that its progress lines tell."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            (*PROGRAM, *arguments),
            cwd=home,
            env=environment(home),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heed_ctrl_c,
        )

    def end_at(self, moment: Callable[[str], bool], how: signal.Signals) -> tuple[int, str]:
        """Send the signal after the first line that is the moment; exit code and the last line."""
        assert self._process.stderr is not None
        line = next((line for line in self._process.stderr if moment(line)), "")
        assert line, "it ended before the moment came"
        self._process.send_signal(how)
        rest = self._process.communicate(timeout=SECONDS)[1]
        return self._process.returncode, (rest.strip().splitlines() or [""])[-1]


def _heed_ctrl_c() -> None:
    """Undo the deafness to SIGINT that a background job inherits."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def at_stage(name: str) -> Callable[[str], bool]:
    return lambda line: line.startswith(f"[{name}]")


def after_trials(count: int) -> Callable[[str], bool]:
    """After so many lines of ended trials; a resumed search repeats those of earlier sessions first."""
    seen: list[str] = []

    def moment(line: str) -> bool:
        seen.extend([line] * line.startswith("[trials] #"))
        return len(seen) == count

    return moment


def test_every_ended_trial_survives_ctrl_c_and_kill_at_any_stage(tmp_path: Path) -> None:
    home = plant(tmp_path)
    folder = home / STUDY
    moments = (
        (at_stage("proxy"), signal.SIGINT, 0),
        (after_trials(2), signal.SIGKILL, 2),
        (after_trials(4), signal.SIGTERM, 4),
        (at_stage("finalists"), signal.SIGKILL, 6),
    )
    ended: EndedTrials = {}
    records: list[str] = []
    for moment, how, least in moments:
        code, last_line = Process(home, *SEARCH, *RESUMED_BUDGET).end_at(moment, how)
        assert code == (-how if how is signal.SIGKILL else 128 + how)
        assert how is signal.SIGKILL or last_line == RESUMABLE
        ended = check_nothing_was_lost(folder, ended)
        records = check_no_record_was_lost(folder, records)
        assert len(ended) >= least
        if ended and how is not signal.SIGKILL:
            check_best_so_far_without_a_figure(folder)
    run(home, *SEARCH, *RESUMED_BUDGET)
    assert len(check_nothing_was_lost(folder, ended)) == 6
    check_no_record_was_lost(folder, records)
    assert not list(folder.glob(".*.tmp"))
    assert SkipConfig.load(folder / "skip.json").score.split == "test"


def test_a_terminated_bench_says_what_it_keeps_and_how_to_go_on(home: Path) -> None:
    log = home / "again.runs.jsonl"

    def has_measured(line: str) -> bool:
        end = monotonic() + SECONDS
        while line.startswith("[bench]") and '"method"' not in (log.read_text() if log.exists() else ""):
            assert monotonic() < end
            sleep(0.01)
        return line.startswith("[bench]")

    bench = ("bench", str(STUDY / "skip.json"), "--out", "again.json", "--no-references", "--rounds", "40")
    code, last_line = Process(home, *bench).end_at(has_measured, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "which again.runs.jsonl keeps; run the same command to resume" in last_line
    assert not (home / "again.json").exists()


def check_nothing_was_lost(folder: Path, before: EndedTrials) -> EndedTrials:
    """The trials that have ended by now, among them all that had ended before, unchanged."""
    now = ended_trials(folder / "journal.log")
    assert before.items() <= now.items()
    return now


def check_no_record_was_lost(folder: Path, before: list[str]) -> list[str]:
    """The whole lines of trials.jsonl, which must begin with those of before."""
    file = folder / "trials.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    assert lines[: len(before)] == before
    return lines


def check_best_so_far_without_a_figure(folder: Path) -> None:
    """What ctrl-c during the trials leaves behind."""
    assert SkipConfig.load(folder / "skip.json").score.end_to_end_speedup is None
    assert not (folder / "bench.json").exists()


def test_a_search_bounded_by_trials_alone_runs_on_a_terminal(
    tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfspec_tune.search import run_search

    monkeypatch.setattr("selfspec_tune.search.budget.proxy_seconds", lambda *_: 0.2)
    request = search_request(tmp_path / "study", tiny_llama_dir, prompt_file(tmp_path / "p.jsonl"), trials=2)
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    with LiveReporter(screen) as reporter:
        outcome = run_search(request, reporter)
    assert outcome.bench is not None
