"""``studies/families/speed.py``: families beside Llamas that read as many bytes, on tiny shapes."""

from __future__ import annotations

import argparse
import io

import pytest
import torch
from rich.console import Console

from selfspec_tune.measure.roofline import ReadKernel
from tests import scripts_kit

SCRIPT = scripts_kit.STUDIES / "families" / "speed.py"


def test_a_mixture_is_timed_beside_a_llama_as_wide_as_its_chosen_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = scripts_kit.load_script(SCRIPT)
    words = torch.ones(1 << 16)
    kernel = ReadKernel("sum", lambda: int(words.sum()) * 4)
    monkeypatch.setattr(speed, "read_kernels", lambda *_: [kernel])
    monkeypatch.setattr(speed, "GENERATED", 4)
    row = speed.measure("mixtral-8x0.3b", argparse.Namespace(tiny=True, runner="fast", rounds=1))
    assert (row["runner"], row["limit"]["kernel"]) == ("fast", "sum")
    assert 0.9 < row["bytes"]["decode"] / row["llama_bytes"]["decode"] < 1.1
    assert row["bytes"]["verify"] > row["bytes"]["decode"] > row["bytes"]["one expert"] > row["bytes"]["half skipped"]
    assert row["drafts"].keys() == {"half skipped", "one expert"}
    stream = io.StringIO()
    speed.print_table(Console(file=stream, width=120), {"mixtral": row, "odd": {"refused": "it is odd."}})
    assert "one expert" in stream.getvalue()
    assert "odd is refused: it is odd." in stream.getvalue()
