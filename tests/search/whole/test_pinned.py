"""What a study was begun with is kept: the commit on the hub, and the date that chat templates print."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.bench import run_bench
from selfspec_tune.bench.sweep import run_sweep
from selfspec_tune.errors import ModelAccessError, PromptError, UsageError
from selfspec_tune.measure.workload import open_workload
from selfspec_tune.prompts import Prompt
from selfspec_tune.requests import BenchRequest, ModelOptions, PromptOptions, SweepKind, SweepRequest
from selfspec_tune.results import BenchResult, SkipConfig, StudyConfig
from selfspec_tune.search import run_search
from tests import kit
from tests.search_kit import Listener, ScriptedEngine

DATED = "{{ strftime_now('%d/%m/%Y') }} {{ messages[0]['content'] }}"


@pytest.fixture
def commits(hub_cache: Path, model: Path, tmp_path: Path) -> list[str]:
    """Two commits of the model gpt2, whose main is the second."""
    other = kit.tiny_llama(tmp_path / "other", vocab=256, seed=4)
    return [
        kit.plant_in_hub_cache(hub_cache, "gpt2", checkpoint, seed=seed).name
        for checkpoint, seed in ((model, "first"), (other, "second"))
    ]


def to_commit(hub_cache: Path, commit: str) -> None:
    """As if main led there."""
    (hub_cache / "models--gpt2" / "refs" / "main").write_text(commit)


def bench(study: Path, **options: Any) -> BenchResult:
    request = BenchRequest((study / "skip.json",), reference_prompts=1, uniform_and_random=False, **options)
    return run_bench(request, Listener())


def test_a_study_keeps_the_commit_it_was_begun_with(
    make_request: Any, engine: ScriptedEngine, hub_cache: Path, commits: list[str]
) -> None:
    to_commit(hub_cache, commits[0])
    request = make_request(name="gpt2", trials=1)
    config = run_search(request, Listener()).skip_config
    assert config.model.revision == commits[0]
    assert config.provenance["model"]["revision"] == commits[0]
    assert StudyConfig.load(request.out / "study.toml").model_revision == commits[0]
    to_commit(hub_cache, commits[1])
    resumed = run_search(make_request(name="gpt2", trials=2), Listener())
    assert resumed.skip_config.model.revision == commits[0]
    assert bench(request.out).model.revision == commits[0]
    with pytest.raises(UsageError, match=f"model_revision {commits[0]} → {commits[1]}"):
        run_search(make_request(name="gpt2", trials=2, revision=commits[1]), Listener())


@pytest.mark.parametrize("sweep", [False, True])
def test_a_bench_goes_on_with_the_commit_it_was_begun_with(
    engine: ScriptedEngine, hub_cache: Path, commits: list[str], source: str, tmp_path: Path, sweep: bool
) -> None:
    def measured(*, more: str = "", name: str = "gpt2", **options: Any) -> Any:
        model = {"name": name, "dtype": "float32", "device": "cpu"} | options
        prompts = {"source": source, "num_prompts": 4, "max_new_tokens": 8, "template": "raw"}
        sets = ("mlp 1", more) if more else ("mlp 1",)
        log = tmp_path / "bench.runs.jsonl"
        request = BenchRequest((), sets, tuple(model.items()), tuple(prompts.items()), uniform_and_random=False)
        request = replace(request, log=log, reference_prompts=1)
        if sweep:
            return run_sweep(SweepRequest(request, SweepKind.TEMPERATURE, (0.0, 0.5)), Listener())
        return run_bench(request, Listener())

    to_commit(hub_cache, commits[0])
    assert measured().model.revision == commits[0]
    to_commit(hub_cache, commits[1])
    resumed = measured(more="mlp 2")
    assert resumed.model.revision == commits[0]
    assert resumed.provenance["model"]["revision"] == commits[0]
    with pytest.raises(UsageError, match="holds another measurement: model fingerprint"):
        measured(revision=commits[1])
    shutil.rmtree(hub_cache / "models--gpt2" / "snapshots" / commits[0])
    with pytest.raises(ModelAccessError, match=rf"\(gpt2, revision {commits[0]}\) is not on this machine"):
        measured(more="mlp 3")


def test_another_model_than_the_study_s_is_told_by_its_name(
    make_request: Any, engine: ScriptedEngine, model: Path, commits: list[str]
) -> None:
    run_search(make_request(name="gpt2", trials=1), Listener())
    with pytest.raises(UsageError, match=f"model gpt2 → {model}"):
        run_search(make_request(name=str(model), trials=2), Listener())


def test_a_revision_is_loaded_by_branch_or_commit(hub_cache: Path, commits: list[str]) -> None:
    (hub_cache / "models--gpt2" / "refs" / "v1.0").write_text(commits[0])
    for revision, commit in ((None, commits[1]), ("v1.0", commits[0]), (commits[0], commits[0])):
        options = ModelOptions("gpt2", dtype="float32", device="cpu", revision=revision)
        loaded = open_workload(options, PromptOptions(), Listener()).loaded
        assert (loaded.revision, loaded.provenance) == (commit, f"hub, revision {commit}")
    with pytest.raises(ModelAccessError, match=r"\(gpt2, revision v9\) is not on this machine"):
        open_workload(ModelOptions("gpt2", revision="v9"), PromptOptions(), Listener())


def test_a_study_keeps_the_date_that_its_template_prints(
    make_request: Any, engine: ScriptedEngine, tmp_path: Path
) -> None:
    directory = kit.tiny_llama(tmp_path / "dated", vocab=256, seed=3, chat=True)
    (directory / "chat_template.jinja").write_text(DATED)
    request = make_request(name=str(directory), template="chat", template_date="03 Feb 2025", trials=1)
    config = run_search(request, Listener()).skip_config
    assert config.provenance["prompts"]["template_date"] == "03 Feb 2025"
    again = make_request(name=str(directory), template="chat", trials=2)
    assert run_search(again, Listener()).skip_config.provenance["prompts"]["template_date"] == "03 Feb 2025"
    assert bench(request.out).provenance["prompts"]["template_date"] == "03 Feb 2025"


def test_a_study_without_commit_or_date_goes_on(make_request: Any, engine: ScriptedEngine) -> None:
    request = make_request(trials=1)
    run_search(request, Listener())
    file = request.out / "study.toml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("template_date")))
    assert not run_search(make_request(trials=2), Listener()).interrupted


def test_a_study_of_other_draft_defaults_gives_its_result_and_does_not_go_on(
    make_request: Any, engine: ScriptedEngine
) -> None:
    request = make_request(trials=1)
    found = run_search(request, Listener()).skip_config
    file = request.out / "study.toml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("draft_defaults")))
    assert run_search(request, Listener()).skip_config == found
    with pytest.raises(UsageError, match=r"other defaults \(older ones; now up to 24 tokens\)"):
        run_search(make_request(trials=2), Listener())


def test_a_prompt_beyond_the_embedding_is_refused_before_anything_runs(tmp_path: Path) -> None:
    directory = kit.tiny_llama(tmp_path / "small", vocab=64)
    kit.tiny_tokenizer(128).save_pretrained(directory)
    workload = open_workload(ModelOptions(str(directory), device="cpu"), PromptOptions(), Listener())
    assert workload.items([Prompt("set/1", "chat", "eat")])
    with pytest.raises(PromptError, match=r"Prompt set/2 has the token '.+' \(\d+\).* for 64 tokens only"):
        workload.items([Prompt("set/2", "chat", "QUARTZ! ~{}~")])


def test_a_skip_file_keeps_its_commit(engine: ScriptedEngine, make_request: Any, commits: list[str]) -> None:
    outcome = run_search(make_request(name="gpt2", trials=1, revision=commits[0]), Listener())
    assert SkipConfig.load(outcome.out / "skip.json").model.revision == commits[0]
