"""Every bad input gets a message that says what to do, an exit code, and no traceback."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend
from typer.testing import CliRunner, Result

from selfspec_tune.cli.app import app
from selfspec_tune.models import load_model
from selfspec_tune.prompts import load_prompts
from selfspec_tune.results import ModelInfo, SkipConfig, SkipLayers
from tests import kit
from tests.journal import ended_trials
from tests.results_kit import skip_config
from tests.search_kit import prompt_file

FAILED, WRONGLY_ASKED = 1, 2
NUM_PROMPTS, NUM_LAYERS = 16, 4


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work where nothing is but a file of prompts, and keep the stage without decoding short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("selfspec_tune.search.budget.proxy_seconds", lambda *_: 0.2)
    prompt_file(Path("prompts.jsonl"), NUM_PROMPTS)


@pytest.fixture(scope="module")
def model_info(tiny_llama_dir: Path) -> ModelInfo:
    return ModelInfo.model_validate(load_model(str(tiny_llama_dir), dtype="float32", device="cpu").describe())


@pytest.fixture
def skip_file(model_info: ModelInfo) -> Path:
    """skip.json of the tiny model, whose search read the first four prompts of the file."""
    hashes = [prompt.hash for prompt in load_prompts("prompts.jsonl")]
    prompts = {"source": "prompts.jsonl", "num_prompts": NUM_PROMPTS, "max_new_tokens": 8, "seed": 0}
    prompts |= {"calibration": hashes[:2], "selection": hashes[2:4], "test": hashes[4:]}
    skip = SkipLayers(attention=[1], mlp=[2])
    config = skip_config(model=model_info, skip=skip, provenance={"prompts": prompts})
    config.save("skip.json")
    return Path("skip.json")


def run(command: str, *arguments: str | Path) -> Result:
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, [*command.split(), *map(str, arguments)])


def search(model: Path | str, *arguments: str | Path) -> Result:
    options = "--prompts prompts.jsonl --num-prompts 16 --max-new-tokens 16 --dtype float32 --device cpu --out study"
    return run(f"search {options} --trials 2", "--model", model, *arguments)


def check(result: Result, exit_code: int, *parts: str) -> None:
    """The command's last word is one message with these parts; nothing but it tells of the failure."""
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    message = result.stderr.splitlines()[-1]
    assert message.startswith("error: ")
    for part in parts:
        assert part in message
    assert result.stdout == ""


def rewritten(file: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The JSON file after ``change`` has had its way with the value."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    return file


def test_an_unknown_model_is_answered_with_the_names_that_are_close() -> None:
    check(search("lama-2-13b"), WRONGLY_ASKED, "Unknown model 'lama-2-13b'", "Did you mean llama-2-13b", "models")


def test_a_directory_that_is_no_model_is_refused() -> None:
    Path("empty").mkdir()
    check(search("empty"), WRONGLY_ASKED, "has no config.json")


def test_a_model_that_is_not_here_without_network_says_what_to_give_instead(hub_cache: Path) -> None:
    check(search("someone/something"), FAILED, "not on this machine", "Give a local directory")


def test_a_model_without_separable_sub_layers_is_refused_by_name(tmp_path: Path) -> None:
    mamba = kit.tiny_of_type(tmp_path / "mamba", "mamba")
    check(search(mamba), FAILED, "MambaForCausalLM cannot draft for itself", "What works")


@pytest.mark.parametrize("command", ["bench", "show", "export --to self-sd"])
def test_a_missing_file_is_named(command: str) -> None:
    check(run(command, "nowhere/skip.json"), WRONGLY_ASKED, "nowhere/skip.json does not exist", "Check the path")


def test_a_missing_prompt_file_is_named() -> None:
    check(search("smollm2-135m", "--prompts", "nowhere.jsonl"), WRONGLY_ASKED, "There is no file nowhere.jsonl")


def test_an_unknown_prompt_source_is_answered_with_those_there_are() -> None:
    check(search("smollm2-135m", "--prompts", "gsm9k"), WRONGLY_ASKED, "'gsm9k'", "Did you mean gsm8k?", "OWNER/NAME")


@pytest.mark.parametrize("content", ["", "\n\n", '{"prompt": ""}\n{"prompt": "  "}\n'])
def test_an_empty_data_set_says_what_was_expected(content: str) -> None:
    Path("empty.jsonl").write_text(content)
    check(search("smollm2-135m", "--prompts", "empty.jsonl"), WRONGLY_ASKED, "empty.jsonl", "holds no prompts")


@pytest.mark.parametrize("policy", ["cost-aware", "fixed"])
def test_a_threshold_for_a_policy_without_one_is_refused(policy: str) -> None:
    result = search("smollm2-135m", "--policy", policy, "--exit-threshold", "0.5")
    check(result, WRONGLY_ASKED, f"the {policy} policy has no threshold", "--policy threshold or adaptive")


def test_too_few_prompts_say_how_many_there_are() -> None:
    check(search("smollm2-135m", "--num-prompts", "40"), WRONGLY_ASKED, "40 prompts were asked for", "has 16")


def test_fewer_prompts_than_there_are_splits_to_fill_are_refused() -> None:
    check(search("smollm2-135m", "--num-prompts", "3"), WRONGLY_ASKED, "needs at least 4 prompts", "gave 3")


def test_tasks_with_too_few_prompts_are_listed_and_so_is_what_to_do() -> None:
    prompts = "--prompts prompts.jsonl --num-prompts"
    result = run(f"search --per-task {prompts} 6")
    check(result, WRONGLY_ASKED, "chat 3, code 3", "--num-prompts", "--task")
    check(run(f"search --task chat {prompts} 3"), WRONGLY_ASKED, "at least 4 prompts")


def test_a_task_that_is_not_there_is_answered_with_those_there_are() -> None:
    check(run("search --prompts prompts.jsonl --task law"), WRONGLY_ASKED, "'law'; its tasks are chat, code")


def test_one_task_alone_is_no_search_per_task() -> None:
    result = run("search --per-task --prompts prompts.jsonl --task code")
    check(result, WRONGLY_ASKED, "these are all of task code", "Leave --per-task out")


def test_a_time_limit_that_cannot_hold_the_test_is_refused(tiny_llama_dir: Path) -> None:
    check(search(tiny_llama_dir, "--timeout", "0.01"), WRONGLY_ASKED, "--timeout", "is too short", "Raise it")
    assert not Path("study/journal.log").exists()


def test_a_prompt_longer_than_the_context_is_named_with_both_lengths(tmp_path: Path) -> None:
    short = kit.tiny_llama(tmp_path / "short", context=64)
    result = search(short, "--max-new-tokens", "50")
    check(result, WRONGLY_ASKED, "Prompt prompts/", "with 50 new tokens", "does not fit the model's context of 64")


@pytest.mark.parametrize("command", ["bench", "show", "export --to self-sd"])
def test_a_truncated_skip_file_is_called_truncated(command: str, skip_file: Path) -> None:
    skip_file.write_text(skip_file.read_text()[:-40])
    check(run(command, skip_file), WRONGLY_ASKED, "skip.json is not valid JSON")


def test_a_skip_file_without_a_field_says_which(skip_file: Path) -> None:
    file = rewritten(skip_file, lambda value: value["model"].pop("num_layers"))
    check(run("bench", file), WRONGLY_ASKED, "skip.json does not fit selfspec-tune/skip-config", "model.num_layers")


def test_a_skip_file_of_a_later_version_asks_for_an_update(skip_file: Path) -> None:
    file = rewritten(skip_file, lambda value: value.update(version=99))
    check(run("bench", file), WRONGLY_ASKED, "version 99", "Update selfspec-tune")


def test_a_skip_file_of_another_model_is_refused(skip_file: Path, tmp_path: Path) -> None:
    other = kit.tiny_llama(tmp_path / "other", seed=1)
    result = run("bench", skip_file, "--model", other)
    check(result, WRONGLY_ASKED, "is another model", "fingerprint", "--skip-set 'attn 1 · mlp 2'")


def test_a_skip_file_of_another_depth_is_refused_with_both_depths(skip_file: Path, tmp_path: Path) -> None:
    deeper = kit.tiny_llama(tmp_path / "deeper", layers=6)
    check(run("bench", skip_file, "--model", deeper), WRONGLY_ASKED, "with 4 layers", "has 6")


def test_another_dialect_of_another_depth_is_refused_with_both_depths(tiny_llama_dir: Path) -> None:
    Path("flags.json").write_text(json.dumps([0, 1] * 6))
    result = run("bench flags.json --prompts prompts.jsonl --num-prompts 4 --max-new-tokens 8 --model", tiny_llama_dir)
    check(result, WRONGLY_ASKED, "for a model of 6 layers, but this model has 4")


def test_another_dialect_needs_a_model() -> None:
    Path("flags.json").write_text(json.dumps([0, 1] * 6))
    check(run("bench flags.json"), WRONGLY_ASKED, "does not say which model it is for", "--model")


@pytest.mark.parametrize(
    ("skip_set", "message"),
    [
        ("attn 4", "attention layer 4 is out of range; the model has 4 layers, numbered 0 to 3"),
        ("mlp 2-9", "mlp layer 9 is out of range"),
        ("layers 2", "Cannot read the skip set 'layers 2'"),
    ],
)
def test_a_skip_set_that_the_model_does_not_have_is_refused(tiny_llama_dir: Path, skip_set: str, message: str) -> None:
    options = "--prompts prompts.jsonl --num-prompts 4 --max-new-tokens 8 --dtype float32"
    result = run(f"bench {options} --model", tiny_llama_dir, "--skip-set", skip_set)
    check(result, WRONGLY_ASKED, message)


@pytest.mark.parametrize(
    ("rival", "message"),
    [
        ("--early-exit 4", "--early-exit 4: the model has 4 layers; expected 1 to 3"),
        ("--draft-model ./nowhere", "./nowhere"),
    ],
)
def test_a_rival_that_cannot_be_set_up_as_asked_is_refused(tiny_llama_dir: Path, rival: str, message: str) -> None:
    options = "--prompts prompts.jsonl --num-prompts 4 --max-new-tokens 8 --dtype float32 --rivals"
    result = run(f"bench {options} {rival} --model", tiny_llama_dir, "--skip-set", "attn 1")
    check(result, WRONGLY_ASKED, message)


@pytest.mark.parametrize("command", ["bench", "show"])
def test_a_layer_out_of_range_in_a_skip_file_is_refused(command: str, skip_file: Path) -> None:
    file = rewritten(skip_file, lambda value: value["skip"].update(attention=[7]))
    check(run(command, file), WRONGLY_ASKED, "attention layer 7 is out of range", "4 layers")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--trials", "0"), "--trials 0: expected at least 1"),
        (("--timeout", "0"), "--timeout 0s: expected a positive duration"),
        (("--timeout", "soon"), "--timeout 'soon' is no duration; expected a form like 90, 90s, 45m"),
        (("--timeout", "-5m"), "is no duration"),
        (("--max-new-tokens", "0"), "--max-new-tokens 0: expected at least 2"),
        (("--num-prompts", "0"), "--num-prompts 0: expected at least 1"),
        (("--temperature", "-1"), "--temperature -1.0: expected 0"),
        (("--temperature", "nan"), "--temperature nan: expected 0 to 100; 0 is greedy"),
        (("--temperature", "inf"), "--temperature inf: expected 0"),
        (("--temperature", "1e30"), "--temperature 1e+30: expected 0"),
        (("--top-p", "nan"), "--top-p nan: expected above 0 and at most 1"),
        (("--top-p", "0"), "--top-p 0.0: expected above 0"),
        (("--top-p", "inf"), "--top-p inf: expected above 0"),
        (("--top-k", "-1"), "--top-k -1: expected a whole number, 0 (off) or more"),
        (("--seed", "-1"), "--seed -1: expected 0 or more"),
        (("--seed", "18446744073709551616"), "expected 0 or more, up to 2147483647"),
        (("--max-draft-tokens", "1000000000"), "--max-draft-tokens 1000000000: expected 1 to 1024"),
        (("--timeout", "9" * 400 + "h"), "expected a positive duration"),
        (("--extra-memory", "9" * 400 + "%"), "no memory is so large"),
        (("--device", "cuda:99"), "Device 'cuda:99' is not there"),
        (("--device", "abacus"), "Unknown device 'abacus'"),
    ],
)
def test_an_impossible_option_is_refused_with_what_was_expected(
    tiny_llama_dir: Path, arguments: tuple[str, str], message: str
) -> None:
    check(search(tiny_llama_dir, *arguments), WRONGLY_ASKED, message)
    assert not Path("study/journal.log").exists()


@pytest.mark.parametrize("option", [("--temperature", "nan"), ("--temperature", "inf"), ("--seed", "99999999999")])
def test_a_bench_looks_at_its_options_before_it_loads_anything(option: tuple[str, str]) -> None:
    run_ = run("bench", "--model", "nowhere/at-all", "--skip-set", "mlp 1", "--prompts", "prompts.jsonl", *option)
    check(run_, WRONGLY_ASKED, f"{option[0]} {option[1]}: expected 0")


def test_answers_longer_than_the_context_are_refused_before_the_model_is_loaded() -> None:
    model = Path("model")
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 1024}))
    told = ("--max-new-tokens 1024: the context of", "has 1024 positions", "Give less than 1024")
    check(search(model, "--max-new-tokens", "1024"), WRONGLY_ASKED, *told)
    bench = run("bench --prompts prompts.jsonl --max-new-tokens 1024 --skip-set", "mlp 1", "--model", model)
    check(bench, WRONGLY_ASKED, *told)
    check(
        search("nowhere/at-all", "--max-new-tokens", "1000000000"), WRONGLY_ASKED, "expected at least 2, up to 16777216"
    )


@pytest.mark.parametrize("temperature", ["1e-320", "1e-40"])
def test_a_temperature_of_all_but_nothing_is_greedy(tiny_llama_dir: Path, temperature: str) -> None:
    options = ("--prompts", "prompts.jsonl", "--num-prompts", "4", "--max-new-tokens", "8", "--dtype", "float32")
    found = run(
        "bench", "--model", tiny_llama_dir, "--skip-set", "mlp 1", *options, "--temperature", temperature, "--json"
    )
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["provenance"]["prompts"]["temperature"] == 0.0
    assert {run_["lossless"] for run_ in result["runs"]} == {"identical"}


def test_an_unknown_number_format_is_answered_with_those_there_are() -> None:
    result = search("smollm2-135m", "--dtype", "int3")
    assert result.exit_code == WRONGLY_ASKED
    assert "Traceback" not in result.output
    for part in ("int3", "float32", "bfloat16", "float16"):
        assert part in result.stderr


def test_a_search_does_not_start_from_what_does_not_fit(tiny_llama_dir: Path, skip_file: Path) -> None:
    Path("theirs.json").write_text(json.dumps({"llama-2-13b": {"attention": [3, 39], "mlp": []}}))
    Path("far.json").write_text(json.dumps([0, 1] * 17))
    Path("empty").mkdir()
    for start, parts in {
        "theirs.json": ("--start-from theirs.json#llama-2-13b: attention layer 39 is out of range", "4 layers"),
        "far.json": ("--start-from far.json is for a model of 17 layers; this one has 4",),
        "empty": ("empty/skip.json does not exist",),
        "nowhere.json": ("nowhere.json does not exist",),
        "attn 9": ("--start-from attn 9: attention layer 9 is out of range",),
    }.items():
        check(search(tiny_llama_dir, "--start-from", start), WRONGLY_ASKED, *parts)
    truncated = skip_file.read_text()[:-40]
    skip_file.write_text(truncated)
    check(search(tiny_llama_dir, "--start-from", skip_file), WRONGLY_ASKED, "skip.json is not valid JSON")
    assert not Path("study/study.toml").exists()


def test_a_bench_with_too_few_unread_prompts_says_how_many_are_left(skip_file: Path) -> None:
    result = run("bench", skip_file, "--num-prompts", "13")
    check(result, WRONGLY_ASKED, "has 12 prompts that the search did not read; 13 were asked", "--allow-calibration")


def test_a_bench_without_any_study_says_how_to_make_one() -> None:
    check(run("bench"), WRONGLY_ASKED, "There is no skip.json under studies/", "selfspec-tune search")


def test_a_study_of_another_configuration_is_not_resumed(tiny_llama_dir: Path) -> None:
    assert search(tiny_llama_dir).exit_code == 0
    before = ended_trials(Path("study/journal.log"))
    check(search(tiny_llama_dir, "--seed", "1"), WRONGLY_ASKED, "another configuration", "seed 0 → 1", "--out")
    assert ended_trials(Path("study/journal.log")) == before


def test_a_study_in_use_by_another_search_is_refused(tiny_llama_dir: Path) -> None:
    Path("study").mkdir()
    with FileLock("study/study.lock"):
        check(search(tiny_llama_dir), WRONGLY_ASKED, "study is in use by another search", "--out")


def test_a_damaged_study_file_is_named(tiny_llama_dir: Path) -> None:
    Path("study").mkdir()
    Path("study/study.toml").write_text("schema = ")
    check(search(tiny_llama_dir), WRONGLY_ASKED, "study.toml is not valid TOML")


def test_a_study_folder_that_cannot_be_made_is_a_storage_error(tiny_llama_dir: Path) -> None:
    Path("study").write_text("in the way")
    check(search(tiny_llama_dir), FAILED, "Cannot write study")


def fill_the_disk_after(monkeypatch: pytest.MonkeyPatch, num_writes: int) -> None:
    """The journal's disk takes so many writes, then it is full."""
    append, done = JournalFileBackend.append_logs, [0]

    def append_logs(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        done[0] += 1
        if done[0] > num_writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", append_logs)


@pytest.mark.parametrize("num_writes", [0, 2, 30])
def test_a_disk_too_full_for_the_journal_says_so_and_the_search_resumes_once_there_is_room(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    with monkeypatch.context() as full:
        fill_the_disk_after(full, num_writes)
        result = search(tiny_llama_dir)
    check(result, FAILED, "Cannot write study/journal.log", "No space left on device", "Free some space")
    resumed = search(tiny_llama_dir)
    assert resumed.exit_code == 0, resumed.output
    assert len(ended_trials(Path("study/journal.log"))) == 2
    assert SkipConfig.load("study/skip.json").score.num_prompts == 8
