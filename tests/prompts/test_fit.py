"""Prompts longer than the model's context: left out, counted and said, in searches and benches."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from selfspec_tune.bench.run import open_bench
from selfspec_tune.cli.app import app
from selfspec_tune.errors import ContextError, PromptError
from selfspec_tune.prompts import Prompt, check_characters, fit_context, may_fit, those_that_fit
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import BenchRequest
from selfspec_tune.search.setup import open_setup
from tests import kit
from tests.search_kit import Listener, prompt_file, prompt_rows, search_request

PROMPTS = [Prompt(f"set/{number}", "qa", "x" * number) for number in (5, 30, 40, 7)]


def at_most(limit: int) -> Any:
    def read(prompt: Prompt) -> str:
        fit_context([0] * len(prompt.text), 2, limit, prompt_id=prompt.id)
        return prompt.id

    return read


def test_prompts_that_do_not_fit_are_left_out_and_named() -> None:
    notices: list[str] = []
    assert those_that_fit(PROMPTS, at_most(10), notices.append) == ["set/5", "set/7"]
    assert notices == [
        "2 of 4 prompts do not fit the model's context with the new tokens, and are left out: set/30, set/40"
    ]
    assert those_that_fit(PROMPTS, at_most(99), notices.append) == [prompt.id for prompt in PROMPTS]
    assert len(notices) == 1


def test_where_none_fits_the_shortest_is_named() -> None:
    with pytest.raises(ContextError, match=r"None of 4 prompts fits. Prompt set/5 has 5 tokens; .* context of 6"):
        those_that_fit(PROMPTS, at_most(6), lambda _: None)
    with pytest.raises(ContextError, match=r"^Prompt set/5 has 5 tokens"):
        those_that_fit(PROMPTS[:1], at_most(6), lambda _: None)


def test_what_no_tokenizer_could_make_fit_is_refused_by_its_characters() -> None:
    assert may_fit(Prompt("a", "qa", "x" * 6400), 100)
    check_characters(Prompt("a", "qa", "x" * 6400), 100)
    said = Prompt("set/9", "qa", "x", (("system", "y" * 6400),))
    with pytest.raises(ContextError, match=r"set/9 has 6401 characters; .* context of 100 tokens"):
        check_characters(said, 100)


@pytest.fixture
def some_too_long(tmp_path: Path) -> str:
    """16 prompts, of which two exceed 256 tokens, one of them by far."""
    rows = prompt_rows(16)
    rows[3]["prompt"] *= 20
    rows[8]["prompt"] = "All that was said. " * 200_000
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths, in characters, of what was tokenised."""
    from selfspec_tune.measure import workload

    lengths: list[int] = []
    real = workload.render

    def render(prompt: Prompt, *options: Any, **named: Any) -> list[int]:
        lengths.append(len(prompt.text))
        return real(prompt, *options, **named)

    monkeypatch.setattr(workload, "render", render)
    return lengths


@pytest.mark.parametrize("tasks", [(), ("chat", "code")])
def test_a_search_leaves_them_out_of_every_split(
    tmp_path: Path, some_too_long: str, tokenised: list[int], tasks: tuple[str, ...]
) -> None:
    model, listener = kit.tiny_llama(tmp_path / "model", context=256), Listener()
    setting = open_setup(search_request(tmp_path / "study", model, some_too_long, tasks=tasks), listener)
    items = [*setting.calibration, *setting.selection, *setting.test]
    assert len(items) == len({item.id for item in items}) == 14
    assert {"set/3", "set/8"}.isdisjoint(item.id for item in items)
    assert sorted(map(len, setting.splits.hashes().values())) == ([3, 3, 8] if not tasks else [2, 2, 10])
    assert any("2 of 16 prompts do not fit" in notice for notice in listener.notices)
    assert max(tokenised) < 2000
    assert setting.config().num_prompts == 16  # drawn: the same command draws as many


def test_a_bench_leaves_them_out(tmp_path: Path, some_too_long: str, tokenised: list[int]) -> None:
    model, listener = kit.tiny_llama(tmp_path / "model", context=256), Listener()
    request = BenchRequest(
        skip_sets=("attn 1",),
        model_overrides=(("name", str(model)), ("dtype", "float32")),
        prompt_overrides=(("source", some_too_long), ("max_new_tokens", 16), ("template", "raw")),
    )
    setting = open_bench(request, listener)
    assert len(setting.prompts) == 14
    assert any("2 of 16 prompts do not fit" in notice for notice in listener.notices)
    assert max(tokenised) < 2000


def test_too_few_that_fit_and_none_that_fits_are_refused(tmp_path: Path, some_too_long: str) -> None:
    short = kit.tiny_llama(tmp_path / "short", context=40)
    request = search_request(tmp_path / "study", short, some_too_long, max_new_tokens=39)
    with pytest.raises(PromptError, match="None of 16 prompts fits"):
        open_setup(request, SilentReporter())


def test_rows_that_are_no_prompts_are_said_by_search_and_bench(tmp_path: Path) -> None:
    rows = [*prompt_rows(8), {"id": "blank", "task": "qa", "prompt": ""}, prompt_rows(8)[0]]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, listener = kit.tiny_llama(tmp_path / "model"), Listener()
    open_setup(search_request(tmp_path / "study", model, str(path), num_prompts=None), listener)
    overrides = (("name", str(model)), ("dtype", "float32"))
    request = BenchRequest(skip_sets=("attn 1",), model_overrides=overrides, prompt_overrides=(("source", str(path)),))
    open_bench(request, listener)
    said = "set.jsonl: of 10 rows, 1 without a text and 1 repeated; prompts left: 8"
    assert sum(notice.endswith(said) for notice in listener.notices) == 2


def test_a_name_that_is_no_utf_8_is_measured_on_and_written(
    tmp_path: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"caf\xe9.jsonl")
    source = prompt_file(tmp_path / name, 4)
    out = tmp_path / "bench.json"
    arguments = f"bench --model {tiny_llama_dir} --max-new-tokens 4 --no-references --runner fast --out {out}"
    monkeypatch.setattr("sys.argv", ["selfspec-tune", "bench", "--prompts", source])
    result = CliRunner().invoke(app, [*arguments.split(), "--skip-set", "attn 1", "--prompts", source, "--json"])
    assert result.exit_code == 0, result.output
    for written in (json.loads(out.read_text()), json.loads(result.stdout)):
        assert written["provenance"]["prompts"]["source"] == str(tmp_path / r"caf\udce9.jsonl")
        assert written["provenance"]["command"][-1] == str(tmp_path / r"caf\udce9.jsonl")
        assert {run["prompt_id"] for run in written["runs"]} == {rf"caf\udce9/{number}" for number in range(4)}
