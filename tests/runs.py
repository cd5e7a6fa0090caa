"""Scripted paired runs for tests of results and summaries, and the counts of rounds as lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from selfspec_tune.draft import Round
from selfspec_tune.results import ArmRun, PairedRun


def drafted_of(rounds: Sequence[Round]) -> list[int]:
    """Tokens drafted in each."""
    return [one.num_drafted for one in rounds]


def accepted_of(rounds: Sequence[Round]) -> list[int]:
    """Tokens accepted in each."""
    return [one.num_accepted for one in rounds]


def sources_of(rounds: Sequence[Round]) -> list[str | None]:
    """Who drafted in each."""
    return [one.source for one in rounds]


def counts_of(rounds: Sequence[Round]) -> list[Round]:
    """The rounds without how sure the draft was, which runners that round differently tell to other digits."""
    return [replace(one, certainties=()) for one in rounds]


def paired_run(
    prompt: str = "a/1",
    *,
    baseline: tuple[int, float, float] = (11, 0.5, 2.0),
    candidate: tuple[int, float, float] = (11, 0.5, 1.0),
    accepted: tuple[int, ...] = (3, 2, 2),
    drafted: tuple[int, ...] = (4, 4, 2),
    **fields: Any,
) -> PairedRun:
    """A pair whose arms are given as (new tokens, prefill seconds, decode seconds)."""
    values: dict[str, Any] = {
        "method": "best",
        "prompt_id": prompt,
        "prompt_hash": f"hash-{prompt}",
        "task": "code",
        "round": 0,
        "order": 1,
        "baseline_order": 0,
        "prompt_tokens": 20,
        "baseline": ArmRun(num_tokens=baseline[0], prefill_seconds=baseline[1], decode_seconds=baseline[2]),
        "candidate": ArmRun(
            num_tokens=candidate[0],
            prefill_seconds=candidate[1],
            decode_seconds=candidate[2],
            draft_seconds=0.4 * candidate[2],
            verify_seconds=0.6 * candidate[2],
            rounds=tuple(map(Round, drafted, accepted)),
        ),
        "lossless": "identical",
    }
    return PairedRun(**(values | fields))
