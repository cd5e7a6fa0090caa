"""Letting go of memory that a file is mapped to."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from selfspec_tune.engine.resident import let_go

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
