"""What a checkpoint's generation_config asks for is said, kept, and not measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.errors import FileFormatError
from selfspec_tune.measure.workload import open_workload
from selfspec_tune.models import load_model
from selfspec_tune.models.generation_settings import ignored_settings, own_settings
from selfspec_tune.requests import ModelOptions, PromptOptions, Sampling
from selfspec_tune.results import BenchResult, SkipConfig
from selfspec_tune.search.run import run_search
from tests.search_kit import Listener, hurry, prompt_file, search_request

ASKED = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "eos_token_id": [2],
    "max_length": 512,
    "transformers_version": "4.37.0",
}
SHAPING = {name: ASKED[name] for name in list(ASKED)[:6]}


@pytest.fixture
def asking(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A checkpoint with a generation_config that asks for much."""
    model = Path(shutil.copytree(tiny_llama_dir, tmp_path / "asking"))
    (model / "generation_config.json").write_text(json.dumps(ASKED))
    return model


def notices(model: Path, **options: Any) -> list[str]:
    listener = Listener()
    open_workload(ModelOptions(str(model), "float32", "cpu"), PromptOptions(**options), listener)
    return [notice for notice in listener.notices if "generation_config" in notice]


def test_what_decides_tokens_is_told_from_the_rest() -> None:
    assert own_settings(ASKED) == SHAPING
    assert own_settings({"temperature": 1.0, "top_k": 0, "top_p": None, "bad_words_ids": [], "num_beams": 1}) == {}
    assert own_settings({"no_repeat_ngram_size": 3, "suppress_tokens": [4]}) == {
        "no_repeat_ngram_size": 3,
        "suppress_tokens": [4],
    }


def test_what_is_measured_too_is_not_ignored() -> None:
    assert ignored_settings(SHAPING, Sampling(0.0, 0, 1.0)) == SHAPING
    same = ignored_settings(SHAPING, Sampling(0.7, 20, 0.8))
    assert same == {"min_p": 0.05, "repetition_penalty": 1.1}
    assert ignored_settings({"do_sample": True, "temperature": 0.7}, Sampling(0.7, 0, 1.0)) == {}


def test_it_is_said_once_and_in_words(asking: Path, tiny_llama_dir: Path) -> None:
    (notice,) = notices(asking)
    assert "temperature 0.7, top_k 20, top_p 0.8, min_p 0.05, repetition_penalty 1.1" in notice
    assert "what is measured is greedy decoding without" in notice
    (sampled,) = notices(asking, temperature=0.7, top_p=0.8, top_k=20)
    assert "asks for min_p 0.05, repetition_penalty 1.1; what is measured is sampling at temperature 0.7" in sampled
    assert notices(tiny_llama_dir) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_p": 0.9}, "`top_p` 0.9: without effect"),
        ({"top_k": 40, "top_p": 0.9}, "`top_p` 0.9 and `top_k` 40: without effect"),
        ({}, None),
        ({"top_p": 0.9, "temperature": 0.7}, None),
    ],
)
def test_what_only_sampling_follows_is_said_to_have_no_effect(
    tiny_llama_dir: Path, options: dict[str, Any], said: str | None
) -> None:
    listener = Listener()
    open_workload(ModelOptions(str(tiny_llama_dir), "float32", "cpu"), PromptOptions(**options), listener)
    found = [notice for notice in listener.notices if "without effect" in notice]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_older_checkpoints_ask_in_their_configuration(tiny_llama_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_llama_dir, tmp_path / "older"))
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"repetition_penalty": 1.3}))
    assert all("repetition_penalty 1.3" in notice for notice in notices(model))


def test_a_search_keeps_it_in_its_files(asking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    listener, out = Listener(), tmp_path / "study"
    run_search(search_request(out, asking, prompt_file(tmp_path / "p.jsonl"), trials=1), listener)
    assert sum("generation_config" in notice for notice in listener.notices) == 1
    assert SkipConfig.load(out / "skip.json").provenance["generation_config"] == SHAPING
    assert BenchResult.load(out / "bench.json").provenance["generation_config"] == SHAPING


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds \\[\\]; expected a JSON object"),
        ("\ufeff{}", "begins with a byte-order mark"),
        ('{"eos_token_id": "x"}', "eos_token_id is 'x'; expected a token's number"),
        ('{"eos_token_id": [2, "x"]}', "eos_token_id is .*; expected a token's number, or a list of such"),
        ('{"max_new_tokens": 0}', "max_new_tokens is 0; expected a whole number of at least 1"),
    ],
)
def test_a_generation_config_that_cannot_be_followed_is_refused(asking: Path, content: str, reason: str) -> None:
    file = asking / "generation_config.json"
    file.write_text(content)
    with pytest.raises(FileFormatError, match=f"{file}:? {reason}"):
        load_model(str(asking), device="cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("temperature", float("nan")), ("top_k", 1.5), ("do_sample", "yes"), ("top_p", 2)],
)
def test_a_value_of_another_kind_is_said_once_and_not_kept(asking: Path, name: str, value: Any) -> None:
    (asking / "generation_config.json").write_text(json.dumps({**ASKED, name: value}))
    said = [notice for notice in notices(asking) if "passed over" in notice]
    assert [f"{name} is {value!r}; expected" in notice for notice in said] == [True]
    assert name not in load_model(str(asking), device="cpu").generation_settings


def test_an_end_beyond_the_vocabulary_is_said(asking: Path) -> None:
    (asking / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 999]}))
    (notice,) = notices(asking)
    assert "end its answers at token 999, and has 128 tokens" in notice
