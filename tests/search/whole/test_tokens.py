"""A study goes on with the tokens that it was begun with, or says what has changed about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.draft import Draft
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import FileFormatError, UsageError
from selfspec_tune.measure.workload import open_workload
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import ModelOptions, PromptOptions
from selfspec_tune.results import StudyConfig
from selfspec_tune.search import run_search
from selfspec_tune.search.stages.calibration import calibrate
from selfspec_tune.search.study import StudyFolder
from tests import kit
from tests.search_kit import Listener, ScriptedEngine, search_request

Change = Callable[[Path], None]


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def swap_ids(folder: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        vocabulary = value["model"]["vocab"]
        vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]

    edit(folder / "tokenizer.json", change)


def swap_ids_of_no_prompt(folder: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        vocabulary = value["model"]["vocab"]
        vocabulary["~"], vocabulary["^"] = vocabulary["^"], vocabulary["~"]

    edit(folder / "tokenizer.json", change)


def drop_merges(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda value: value["model"].update(merges=[]))


def add_token(folder: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        value["added_tokens"].append({"id": 200, "content": "<|extra|>", **added})

    edit(folder / "tokenizer.json", change)


def add_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(kit.CHAT_TEMPLATE)


def add_eos(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        edit(folder / name, lambda value: value.update(eos_token_id=[2, 7]))


CHANGES: dict[str, tuple[Change, str]] = {
    "ids swapped": (swap_ids, "the model now has another tokenizer, other tokens of the same prompts"),
    "ids swapped that no prompt has": (swap_ids_of_no_prompt, "the model now has another tokenizer. What"),
    "other merges": (drop_merges, "the model now has other tokens of the same prompts. What"),
    "a token added": (add_token, "the model now has another tokenizer. What"),
    "a template added": (add_template, "the model now has another chat template, other tokens of the same prompts"),
    "another end": (add_eos, r"the model now has other end-of-sequence tokens \(2 → 2, 7\)\. What"),
}


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copied"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_study_on_other_tokens_is_refused_by_what_has_changed(
    tmp_path: Path, copied: Path, model: Path, source: str, engine: ScriptedEngine, change: str
) -> None:
    def search(trials: int) -> None:
        run_search(search_request(tmp_path / "study", copied, source, template="auto", trials=trials), Listener())

    search(1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "study").iterdir()}
    make, said = CHANGES[change]
    make(copied)
    for trials in (1, 2):
        with pytest.raises(UsageError, match=rf"{said}.*Put the model's files back .* or give another `out`"):
            search(trials)
    assert {path.name: path.read_bytes() for path in (tmp_path / "study").iterdir()} == before
    shutil.rmtree(copied)
    shutil.copytree(model, copied)
    search(2)


def test_a_template_that_no_prompt_is_rendered_with_may_change(
    tmp_path: Path, copied: Path, source: str, engine: ScriptedEngine
) -> None:
    run_search(search_request(tmp_path / "study", copied, source, trials=1), Listener())  # --template raw
    add_template(copied)
    run_search(search_request(tmp_path / "study", copied, source, trials=2), Listener())


def test_other_options_are_named_before_the_tokens_that_they_change(make_request: Any, engine: ScriptedEngine) -> None:
    run_search(make_request(trials=1), Listener())
    with pytest.raises(UsageError, match=r"another configuration \(prompts_hash \w+ → \w+, num_prompts 16 → 12\)"):
        run_search(make_request(trials=1, num_prompts=12), Listener())


def test_a_study_that_kept_no_tokens_goes_on_and_keeps_them_from_then_on(
    make_request: Any, engine: ScriptedEngine
) -> None:
    out = run_search(make_request(trials=1), Listener()).out
    config = StudyConfig.load(out / "study.toml")
    unknown = {"tokenizer": None, "chat_template": None, "eos_token_ids": None, "prompt_tokens": None}
    config.model_copy(update=unknown).save(out / "study.toml")
    run_search(make_request(trials=2), Listener())
    assert StudyConfig.load(out / "study.toml") == config.model_copy(update={"trials": 2})


def test_answers_belong_to_tokens_not_to_a_text(tmp_path: Path, model: Path, source: str) -> None:
    options = PromptOptions(source=source, num_prompts=2, max_new_tokens=9, template="raw")
    workload = open_workload(ModelOptions(str(model), dtype="float32", device="cpu"), options, SilentReporter())
    (item,) = workload.items([workload_prompt(source)])
    draft, file = Draft(SkipSet.empty(4), sources=(NgramLookup(),), model_drafts=False), tmp_path / "calibration.json"

    def answer(tokens: tuple[int, ...]) -> tuple[int, ...]:
        return calibrate(workload, [replace(item, tokens=tokens)], draft, file, SilentReporter())[0].tokens

    first, other = answer(item.tokens), answer(item.tokens[::-1])
    assert first != other
    assert (answer(item.tokens), answer(item.tokens[::-1])) == (first, other)
    old = {"schema": "selfspec-tune/calibration", "version": 1, "answers": {item.prompt.hash: [5, 6]}}
    file.write_text(json.dumps(old))
    assert answer(item.tokens) == (5, 6)


def workload_prompt(source: str) -> Any:
    from selfspec_tune.prompts import load_prompts

    return load_prompts(source)[0]


# What lies in the folder


@pytest.mark.parametrize(
    ("name", "newest"), [("calibration", 2), ("preparation", 1), ("ranking", 3), ("schedule", 1), ("choice", 1)]
)
def test_a_file_of_a_later_version_is_refused_by_name(
    make_request: Any, engine: ScriptedEngine, name: str, newest: int
) -> None:
    out = run_search(make_request(trials=1, timeout_seconds=3000), Listener()).out
    if name == "preparation":  # read where there is no ranking yet
        (out / "ranking.json").unlink()
    edit(out / f"{name}.json", lambda value: value.update(version=9))
    with pytest.raises(FileFormatError, match=rf"{name}\.json is version 9 .*; this program reads up to {newest}"):
        run_search(make_request(trials=2, timeout_seconds=3000), Listener())


def test_a_search_whose_study_file_is_gone_is_refused(make_request: Any, engine: ScriptedEngine) -> None:
    out = run_search(make_request(trials=1), Listener()).out
    (out / "study.toml").unlink()
    with pytest.raises(UsageError, match=r"holds calibration\.json, .* of a search, but not its study\.toml"):
        run_search(make_request(trials=1, seed=5), Listener())
    assert not (out / "study.toml").exists()


@pytest.mark.parametrize("name", ["skip.json", "bench.json", "journal.log", "proxy.jsonl"])
def test_no_file_of_a_search_is_taken_for_the_new_ones(make_request: Any, name: str) -> None:
    folder = make_request().out
    folder.mkdir()
    (folder / name).write_text("kept")
    with pytest.raises(UsageError, match=f"holds {name} of a search, but not its study.toml"):
        run_search(make_request(), Listener())
    assert (folder / name).read_text() == "kept"


# What is finished


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_a_budget_that_was_spent_long_ago_changes_nothing(
    make_request: Any, engine: ScriptedEngine, trials: int
) -> None:
    out = run_search(make_request(trials=3), Listener()).out
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    listener = Listener()
    assert run_search(make_request(trials=trials), listener).bench is not None
    assert any("is finished; raise `trials` or `timeout`" in notice for notice in listener.notices)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert {name: after[name] for name in before if name != "study.lock"} == {
        name: before[name] for name in before if name != "study.lock"
    }


@pytest.mark.parametrize(
    ("done", "asked", "is_finished"),
    [
        ((3, 300.0), (3, 300.0), True),
        ((3, 300.0), (3, 200.0), True),
        ((None, 300.0), (None, 200.0), True),
        ((None, 300.0), (5, 300.0), True),
        ((3, 300.0), (2, None), False),  # more time may have given a longer test
        ((None, 300.0), (None, 400.0), False),
        ((3, 300.0), (4, 300.0), False),
        ((3, None), (None, 300.0), False),
    ],
)
def test_what_is_finished_is_told_by_both_limits(
    make_request: Any, engine: ScriptedEngine, done: Any, asked: Any, is_finished: bool
) -> None:
    folder = StudyFolder(run_search(make_request(trials=3), Listener()).out)

    def request(budget: Any) -> Any:
        return make_request(trials=budget[0], timeout_seconds=budget[1])

    folder.note_finished(request(done))
    assert folder.is_finished(request(asked)) is is_finished


def test_a_finished_study_is_read_where_nothing_can_be_written(
    make_request: Any, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfspec_tune.errors import StorageError
    from selfspec_tune.search import study

    finished = run_search(make_request(), Listener())

    class ReadOnly(study.FileLock):
        def acquire(self, *_: Any, **__: Any) -> Any:
            raise OSError(30, "Read-only file system", self.lock_file)

    monkeypatch.setattr(study, "FileLock", ReadOnly)
    monkeypatch.setattr("selfspec_tune.files.write_atomic", lambda *_: pytest.fail("something was written"))
    assert run_search(make_request(), Listener()).skip_config == finished.skip_config
    with pytest.raises(StorageError, match="Read-only file system"):
        run_search(make_request(trials=5), Listener())
