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
    """The tests of bits, copies and losslessness, in a process of that level."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *BITS],
        env={**os.environ, LEVEL_VARIABLE: level},
        cwd=ROOT,
        check=True,
    )
