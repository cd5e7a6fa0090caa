"""What the memory allows plain bfloat16 decoding, beside pairs of a tiny model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from selfspec_tune.measure import plain_limit
from selfspec_tune.measure.plain_limit import PlainLimit
from selfspec_tune.measure.traffic import traffic_of
from selfspec_tune.models import LoadedModel
from selfspec_tune.results import PairedRun
from tests import kit
from tests.engine_kit import load
from tests.runs import paired_run
from tests.search_kit import without_caches

RUNS = [paired_run("a/1"), paired_run("a/2", baseline=(31, 0.5, 2.0))]


@pytest.fixture(autouse=True)
def no_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    without_caches(monkeypatch)


def beside(loaded: LoadedModel) -> tuple[list[PairedRun], list[str]]:
    """The runs with what is known of the memory, and the notices."""
    notices: list[str] = []
    runner: Any = SimpleNamespace(synchronize=lambda: None)
    return PlainLimit(loaded, runner, notices.append).beside(lambda: RUNS), notices


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_decoding_reads_bfloat16_and_the_cache_at_mean_length_whatever_the_dtype(
    tiny_llama_dir: Path, dtype: str
) -> None:
    runs, notices = beside(load(tiny_llama_dir, dtype))
    read = traffic_of(load(tiny_llama_dir, "bfloat16"))
    assert [run.plain_bytes for run in runs] == [read.full_step(20 + 5), read.full_step(20 + 15)]
    assert all(run.memory_bytes_per_second for run in runs)
    assert [run.baseline for run in runs] == [run.baseline for run in RUNS]
    assert notices == []


def test_what_the_memory_delivers_is_taken_before_and_after_a_block(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = iter([10.0, 30.0])
    meter = SimpleNamespace(bytes_per_second=lambda: next(speeds))
    monkeypatch.setattr(plain_limit, "MemoryMeter", lambda kernels, synchronize: meter)
    runs, _ = beside(load(tiny_llama_dir))
    assert [run.memory_bytes_per_second for run in runs] == [pytest.approx(15.0)] * 2  # half the bytes at each speed


def test_a_model_that_the_caches_hold_is_not_limited_by_the_memory(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tiny_llama_dir)
    weights = int(traffic_of(loaded, torch.bfloat16).full_step(0))
    monkeypatch.setattr(plain_limit, "last_level_cache", lambda device: weights)
    runs, notices = beside(loaded)
    assert runs == RUNS
    assert notices == [
        "no share of the memory's limit is told: The model is no larger than this machine's caches, so the memory does "
        "not limit it."
    ]


def test_of_a_mixture_the_experts_of_one_token_count_and_without_a_plan_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(kit.tiny_of_type(tmp_path / "moe", "mixtral"))
    runs, _ = beside(loaded)
    whole = sum(2 * parameter.numel() for parameter in loaded.model.parameters())
    assert 0 < (runs[0].plain_bytes or 0) < whole
    traffic = SimpleNamespace(counts_all=True)
    monkeypatch.setattr(plain_limit, "traffic_of", lambda loaded, dtype: traffic)
    runs, notices = beside(loaded)
    assert runs == RUNS
    assert "Without a plan of the model" in notices[0]


def test_without_room_to_read_a_bench_goes_on_and_says_so(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(tiny_llama_dir)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 10))
    runs, notices = beside(loaded)
    assert runs == RUNS
    assert "free beside the model" in notices[0]
