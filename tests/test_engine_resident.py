"""Where weights lie: mapped from a file, let go of, in memory of their own."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfspec_tune.engine.fast import FastRunner
from selfspec_tune.engine.resident import is_mapped, let_go, roomy
from tests.engine_kit import load

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what is resident")


def resident_of_files() -> int:
    """Bytes of mapped files in this process's memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) * 1024


def test_a_mapped_tensor_leaves_memory_and_keeps_its_values(tmp_path: Path) -> None:
    save_file({"before": torch.ones(3, 5), "weight": torch.arange(4_000_000.0)}, tmp_path / "model.safetensors")
    weight = load_file(tmp_path / "model.safetensors")["weight"]
    total = weight.sum()
    before = resident_of_files()
    let_go(weight)
    assert before - resident_of_files() > 15_000_000
    assert weight.sum() == total


@pytest.mark.parametrize("tensor", [torch.ones(1_000_000), torch.ones(3), torch.empty(0), torch.ones(9, 4000)[:, ::2]])
def test_other_memory_is_left_alone(tensor: torch.Tensor) -> None:
    let_go(tensor)
    assert bool((tensor == 1).all())


def test_a_mapped_tensor_is_told_from_one_of_its_own_memory(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(5000)}, tmp_path / "model.safetensors")
    assert is_mapped(load_file(tmp_path / "model.safetensors")["weight"])
    assert not is_mapped(torch.ones(5000))


@pytest.mark.parametrize("shape", [(0,), (3,), (700, 3001)])
def test_roomy_memory_holds_what_is_written(shape: tuple[int, ...]) -> None:
    tensor = roomy(shape, torch.float32).fill_(1.0)
    assert tensor.shape == shape
    assert bool((tensor == 1).all())


def test_huge_pages_hold_a_large_tensor_where_the_system_gives_them() -> None:
    size = 64 << 20
    before = _is_given_huge_pages(size)
    tensor = roomy((size,), torch.uint8).fill_(1)
    is_huge = _huge_bytes_at(tensor.data_ptr() + size // 2) >= size // 2
    if not is_huge and not (before and _is_given_huge_pages(size)):  # other programs use them up
        pytest.skip("this system gives no huge pages now")
    assert is_huge


def _is_given_huge_pages(size: int) -> bool:
    control = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    control.madvise(mmap.MADV_HUGEPAGE)
    control.write(b"1" * size)
    return _huge_bytes_at(ctypes.addressof(ctypes.c_char.from_buffer(control)) + size // 2) >= size // 2


def _huge_bytes_at(address: int) -> int:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            begin, end = (int(bound, 16) for bound in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "AnonHugePages:":
            return int(line.split()[1]) * 1024
    return 0


def test_a_runner_reads_no_weight_from_a_mapped_file(tiny_llama_dir: Path) -> None:
    loaded = load(tiny_llama_dir)
    FastRunner(loaded)
    model = loaded.model
    weights = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    assert weights
    assert not any(is_mapped(weight.data) for weight in weights)


def test_a_tied_embedding_moves_with_the_head(tiny_qwen2_dir: Path) -> None:
    loaded = load(tiny_qwen2_dir)
    embedding, head = loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight
    tied = embedding is head
    FastRunner(loaded)
    assert (embedding.data_ptr() == head.data_ptr()) is tied
