from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from selfspec_tune.cpu import Cache, cpu_caches, last_level_bytes
from selfspec_tune.errors import SelfSpecError
from selfspec_tune.measure import roofline
from selfspec_tune.measure.roofline import (
    Limit,
    MemoryMeter,
    ReadKernel,
    find_limit,
    largest_matrix,
    read_kernels,
)
from tests import kit
from tests.engine_kit import load


def test_the_largest_matrix_is_the_heads_or_the_mlps(tiny_llama_dir: Path, tmp_path: Path) -> None:
    assert largest_matrix(load(tiny_llama_dir))[0] == 128
    assert largest_matrix(load(kit.tiny_llama(tmp_path / "wide", vocab=512))) == (512, 64)


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(roofline, "last_level_cache", lambda device: 1 << 18)


@pytest.mark.usefixtures("small_buffers")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_read_as_much_as_they_say(dtype: torch.dtype) -> None:
    kernels = {kernel.name: kernel for kernel in read_kernels(torch.device("cpu"), dtype, (96, 64))}
    assert list(kernels) == ["reduction", "copy", "gemv"]
    size = kernels["reduction"].run()
    assert size >= 1 << 20
    assert size % (64 * dtype.itemsize) == 0
    assert (kernels["copy"].run(), kernels["gemv"].run()) == (2 * size, size)


@pytest.mark.usefixtures("small_buffers")
def test_a_matrix_larger_than_the_least_size_is_taken_as_it_is() -> None:
    (reduction, _, _) = read_kernels(torch.device("cpu"), torch.float32, (3001, 512))
    assert reduction.run() == 3002 * 512 * 4


@pytest.mark.usefixtures("small_buffers")
def test_a_runners_own_kernel_competes() -> None:
    runner: Any = SimpleNamespace(read_kernels=lambda buffer: [("stream", buffer.numel)])
    kernels = read_kernels(torch.device("cpu"), torch.float32, (96, 64), runner)
    assert (kernels[-1].name, kernels[-1].run()) == ("stream", kernels[-2].run() // 4)


def test_too_little_memory_is_said_before_any_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 20))
    monkeypatch.setattr(roofline, "last_level_cache", lambda device: 1 << 18)
    with pytest.raises(SelfSpecError, match=r"needs 0\.5 GiB free beside the model"):
        read_kernels(torch.device("cpu"), torch.float32, (96, 64))


def test_the_limit_is_the_kernel_that_moves_most_a_second() -> None:
    kernels = [ReadKernel("a", lambda: 10), ReadKernel("b", lambda: 30)]
    limit = find_limit(kernels, {"a": 10, "b": 30}, {"a": [1.0, 1.0, 9.0], "b": [2.0, 2.0, 2.0]})
    assert (limit.name, limit.bytes_per_second) == ("b", 15.0)


def test_a_share_is_taken_within_rounds() -> None:
    # The machine halves its speed from round to round; the share stays what it is.
    limit = Limit("a", 100, [1.0, 2.0, 4.0])
    assert limit.share(50, [1.0, 2.0, 4.0]) == pytest.approx(0.5)


class Memory:
    """A clock that moves as kernels read; ``seconds`` are of each of their calls in turn."""

    def __init__(self, seconds: Iterator[float]) -> None:
        self.now = 0.0
        self.seconds = seconds

    def kernel(self, num_bytes: int) -> ReadKernel:
        def run() -> int:
            self.now += next(self.seconds)
            return num_bytes

        return ReadKernel("read", run)


def test_a_moment_s_speed_is_that_of_the_fastest_call_of_any_kernel() -> None:
    memory = Memory(iter([9.0, 9.0, 2.0, 4.0, 1.0, 5.0]))  # the first call of each warms up
    meter = MemoryMeter([memory.kernel(10), memory.kernel(6)], lambda: None, lambda: memory.now)
    assert meter.bytes_per_second() == 6.0


def test_memory_is_measured_anew_when_a_fiftieth_of_the_time_pays_for_it() -> None:
    memory = Memory(iter([1.0, *[1.0] * 2, *[2.0] * 2]))
    meter = MemoryMeter([memory.kernel(8)], lambda: None, lambda: memory.now)
    speeds = []
    for pause in (0.0, 60.0, 39.0, 2.0):
        memory.now += pause
        speeds.append(meter.bytes_per_second())
    assert speeds == [8.0, 8.0, 8.0, 4.0]


def test_every_kernel_is_waited_for_before_and_after() -> None:
    events: list[str] = []

    def noted(name: str, value: int = 0) -> Callable[[], int]:
        return lambda: events.append(name) or value  # type: ignore[func-returns-value]

    ticks = iter(range(100))
    MemoryMeter([ReadKernel("read", noted("read", 8))], noted("wait"), lambda: float(next(ticks))).bytes_per_second()
    timed = events[1:]
    assert timed == ["wait", "read", "wait"] * 2


def plant_cache(cpus: Path, cpu: int, index: int, kind: str, level: int, size: str, shared_by: str) -> None:
    folder = cpus / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, value in (("type", kind), ("level", str(level)), ("size", size), ("shared_cpu_list", shared_by)):
        (folder / name).write_text(value + "\n")


def test_caches_that_cores_share_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    for cpu, l3 in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        plant_cache(tmp_path, cpu, 0, "Data", 1, "32K", str(cpu))
        plant_cache(tmp_path, cpu, 1, "Instruction", 1, "64K", str(cpu))
        plant_cache(tmp_path, cpu, 2, "Unified", 3, "16M", l3)
    caches = cpu_caches(tmp_path)
    assert Cache(1, 32 << 10, "2") in caches
    assert len(caches) == 3 + 2
    assert last_level_bytes(caches) == 32 << 20


def test_where_nothing_is_told_of_caches_there_are_none(tmp_path: Path) -> None:
    assert cpu_caches(tmp_path) == []
    assert last_level_bytes([]) == 0
    plant_cache(tmp_path, 0, 0, "Unified", 3, "much", "0")
    assert cpu_caches(tmp_path) == []
