"""What whole searches in tests share: a tiny model, prompts, requests and an engine that times nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.requests import SearchRequest
from tests import kit
from tests.search_kit import ScriptedEngine, by_number_skipped, hurry, prompt_file, search_request


@pytest.fixture(scope="module", autouse=True)
def in_a_hurry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers and no early end of sequence on these prompts."""
    return kit.tiny_llama(tmp_path_factory.mktemp("model"), vocab=256, seed=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prompt_file(tmp_path_factory.mktemp("prompts") / "set.jsonl", 20)


@pytest.fixture
def make_request(tmp_path: Path, model: Path, source: str) -> Any:
    """Requests on the tiny model, into ``tmp_path / "study"``."""

    def make(**fields: Any) -> SearchRequest:
        return search_request(tmp_path / "study", model, source, **fields)

    return make


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """Nothing is timed: everything skipped makes decoding a little faster."""
    return ScriptedEngine(by_number_skipped).install(monkeypatch)
