"""Threads: no more than this process finds cores for, and a word where more were asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import selfspec_tune
from selfspec_tune.cpu import most_threads, stated_threads
from selfspec_tune.engine import choose_runner, torch_settings
from selfspec_tune.engine.torch_settings import limit_threads
from selfspec_tune.models import LoadedModel
from tests.engine_kit import load


class _Torch:
    """What the module asks of torch, with a number of threads of its own."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_num_threads(self) -> int:
        return self.number

    def set_num_threads(self, number: int) -> None:
        self.number = number

    backends = SimpleNamespace(cudnn=SimpleNamespace())  # what `use_exact_float32` sets

    def set_float32_matmul_precision(self, precision: str) -> None:
        assert precision == "highest"


@pytest.mark.parametrize(
    ("cores", "quota", "most"),
    [(8, None, 8), (8, 2.5, 2), (8, 0.5, 1), (2, 16.0, 2), (1, 1.0, 1), (4, 4.0, 4)],
)
def test_threads_are_bounded_by_cores_and_quota(cores: int, quota: float | None, most: int) -> None:
    assert most_threads(cores, quota) == most


@pytest.mark.parametrize(("text", "number"), [("16", 16), ("4,2", 4), ("", 0), ("many", 0), ("-3", 0)])
def test_what_the_variable_asks_for(monkeypatch: pytest.MonkeyPatch, text: str, number: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert stated_threads() == number


def test_a_number_that_torch_lowered_itself_is_warned_of_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its builds with MKL do."""
    torch, notices = _Torch(2), list[str]()
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    monkeypatch.setattr(torch_settings, "torch", torch)
    monkeypatch.setattr(torch_settings, "num_cores", lambda: 2)
    monkeypatch.setattr(torch_settings, "cpu_quota", lambda: None)
    limit_threads(notices.append)
    assert torch.number == 2
    assert "OMP_NUM_THREADS is 16, and this process may use 2 cores: it runs with 2" in notices[0]
    assert os.environ["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    ("asked", "cores", "quota", "used", "words"),
    [
        (16, 2, None, 2, "OMP_NUM_THREADS is 16, and this process may use 2 cores: it runs with 2"),
        (8, 8, 2.5, 2, "may use the time of 2.5 cores: it runs with 2"),
        (8, 4, 6.0, 4, "may use 4 cores: it runs with 4"),
        (8, 8, 0.3, 1, "the time of 0.3 cores: it runs with 1"),
    ],
)
def test_more_threads_than_that_are_lowered_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, asked: int, cores: int, quota: float | None, used: int, words: str
) -> None:
    torch, notices = _Torch(asked), list[str]()
    monkeypatch.setenv("OMP_NUM_THREADS", str(asked))
    monkeypatch.setattr(torch_settings, "torch", torch)
    monkeypatch.setattr(torch_settings, "num_cores", lambda: cores)
    monkeypatch.setattr(torch_settings, "cpu_quota", lambda: quota)
    limit_threads(notices.append)
    assert torch.number == used
    assert len(notices) == 1
    assert words in notices[0]
    limit_threads(notices.append)
    assert len(notices) == 1  # once is enough


def test_without_the_variable_it_is_torch_that_took_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setattr(torch_settings, "torch", _Torch(8))
    monkeypatch.setattr(torch_settings, "num_cores", lambda: 8)
    monkeypatch.setattr(torch_settings, "cpu_quota", lambda: 2.0)
    limit_threads(notices.append)
    assert notices[0].startswith("torch uses 8 threads, and this process may use the time of 2 cores")


def test_fewer_threads_are_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    torch, notices = _Torch(2), list[str]()
    monkeypatch.setattr(torch_settings, "torch", torch)
    monkeypatch.setattr(torch_settings, "num_cores", lambda: 8)
    monkeypatch.setattr(torch_settings, "cpu_quota", lambda: None)
    limit_threads(notices.append)
    assert (torch.number, notices) == (2, [])


def test_whoever_chooses_a_runner_is_told(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: LoadedModel = load(tiny_llama_dir)
    torch, notices = _Torch(64), list[str]()
    monkeypatch.setattr(torch_settings, "torch", torch)
    monkeypatch.setattr(torch_settings, "cpu_quota", lambda: 1.0)
    choose_runner(loaded, "reference", notices.append)
    assert torch.number == 1
    assert "it runs with 1" in notices[0]


def test_the_real_variable_is_lowered_to_the_real_cores() -> None:
    code = (
        "import torch; from selfspec_tune.engine.torch_settings import limit_threads; "
        "before = torch.get_num_threads(); limit_threads(print); print(before, torch.get_num_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "4096", "PYTHONPATH": str(Path(selfspec_tune.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    notice, numbers = done.stdout.splitlines()
    before, after = map(int, numbers.split())
    assert "OMP_NUM_THREADS is 4096" in notice
    assert 1 <= after <= before
