"""What ``scripts/study_levels`` writes: a row for each level, from what doctor found."""

from __future__ import annotations

from typing import Any

from tests.scripts_kit import load_script

study = load_script("study_levels")


def found(*names: str) -> dict[str, Any]:
    """A diagnosis with these steps, each half as long again as the one before."""
    steps = [
        {"name": name, "seconds": {"median": 0.01 * 1.5**i}, "of_limit": 0.9, "to_decode": 1.5**i}
        for i, name in enumerate(names)
    ]
    return {"contexts": [{"steps": steps}]}


def test_a_row_has_decode_in_milliseconds_and_other_steps_to_it() -> None:
    row = study.row("x86-64-v3", found("decode", "verify(4)", "verify(8)", "draft at int8", "draft at int4"))
    assert row == "| x86-64-v3 | 10.0 ms | 90 % | 1.50 | 2.25 | 3.38 | 5.06 |"


def test_a_step_that_was_not_timed_leaves_a_dash() -> None:
    assert study.row("aarch64", found("decode", "verify(4)")) == "| aarch64 | 10.0 ms | 90 % | 1.50 | – | – | – |"
