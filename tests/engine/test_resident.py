"""Where weights lie: mapped from a file, let go of, in memory of their own."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfspec_tune.engine.layers.linear import is_mapped, let_go, roomy
from selfspec_tune.engine.runners.fast import FastRunner
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


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this system has no huge pages")
def test_huge_pages_are_asked_for_a_large_tensor() -> None:
    """Whether they are given depends on the free memory of the moment, so only the request is looked at."""
    size = 64 << 20
    tensor = roomy((size,), torch.uint8)
    assert "hg" in _flags_at(tensor.data_ptr() + size // 2)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this system has no huge pages")
def test_the_flag_that_the_test_above_reads_is_not_always_there() -> None:
    """A mapping of its own: memory of the heap may have been a large tensor's before."""
    size = 64 << 20
    with mmap.mmap(-1, size) as plain:
        view = torch.frombuffer(plain, dtype=torch.uint8)
        assert "hg" not in _flags_at(view.data_ptr() + size // 2)
        del view


def _flags_at(address: int) -> list[str]:
    """What the kernel notes of the mapping that holds ``address``: ``hg`` where huge pages were asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if "-" in head and not head.endswith(":"):
            begin, end = (int(bound, 16) for bound in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "VmFlags:":
            return rest
    return []


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
