"""The real kernels at every level below this processor's own: built, tested by their own test, and lossless."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from selfspec_tune.cpu import LEVEL_VARIABLE, available_levels
from tests.engine_kit import needs_compiler

pytestmark = needs_compiler
LOWER = [level.name for level in available_levels()[:-1]]
ROOT = Path(__file__).resolve().parents[2]
BITS = [f"tests/engine/test_{name}.py" for name in ("native", "native_copies", "greedy", "lossless")]
FAMILIES = [
    f"tests/engine/test_families.py::test_{name}"
    for name in ("logits_equal_one_forward", "native_bits_depend_neither_on_tokens_nor_on_threads")
]


@pytest.mark.parametrize("level", LOWER)
def test_a_lower_level_passes_its_own_test(level: str) -> None:
    """Building is refused otherwise: `selfspec_tune.engine.kernels.store.judge`."""
    said = subprocess.run(
        [sys.executable, "-c", "from selfspec_tune.engine.kernels import status; print(status())"],
        env={**os.environ, LEVEL_VARIABLE: level},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith(f"native kernels {level}, ")


@pytest.mark.long
@pytest.mark.parametrize("level", LOWER)
def test_a_lower_level_keeps_the_invariants(level: str) -> None:
    """The tests of bits, copies, losslessness and every family, in a process of that level."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *BITS, *FAMILIES],
        env={**os.environ, LEVEL_VARIABLE: level},
        cwd=ROOT,
        check=True,
    )
