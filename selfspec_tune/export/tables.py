"""Bench results as tables for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.files import write_atomic
from selfspec_tune.intervals import Interval
from selfspec_tune.results import BenchResult, LosslessCount, MethodResult, SweepResult

if TYPE_CHECKING:
    import pandas as pd

_RATES = (
    "geometric_mean_speedup",
    "acceptance_rate",
    "mean_accepted_tokens",
    "draft_cost_fraction",
    "verify_cost_fraction",
    "degenerate_share",
    "num_too_short",
)


def write_csv(result: BenchResult | SweepResult, path: Path) -> None:
    """The table of `to_frame`. Raises `StorageError`."""
    write_atomic(path, to_frame(result).to_csv(index=False))


def write_parquet(result: BenchResult | SweepResult, path: Path) -> None:
    """The table of `to_frame`. Raises `StorageError`."""
    write_atomic(path, to_frame(result).to_parquet(index=False))


def to_frame(result: BenchResult | SweepResult) -> pd.DataFrame:
    """A row a method, intervals spread over three columns; in a sweep at each value, with what was varied before it."""
    import pandas as pd

    if isinstance(result, BenchResult):
        return pd.DataFrame([_row(method) for method in result.methods])
    return pd.DataFrame(
        [
            {"sweep": result.sweep, "value": point.value, "prompt_tokens": point.prompt_tokens, **_row(method)}
            for point in result.points
            for method in point.methods
        ]
    )


def _row(method: MethodResult) -> dict[str, Any]:
    skip = method.skip
    row: dict[str, Any] = {"name": method.name, "id": method.id, "description": method.description}
    row["attention"] = ",".join(map(str, skip.attention)) if skip else None
    row["mlp"] = ",".join(map(str, skip.mlp)) if skip else None
    rates = ("tokens_per_second", "decode_tokens_per_second")
    row |= {key: getattr(method, key) for key in ("num_prompts", "num_runs", *rates)}
    for key in ("end_to_end_speedup", "decode_speedup", "of_memory_limit"):
        interval: Interval | None = getattr(method, key)
        row[key] = interval.value if interval else None
        row[f"{key}_low"] = interval.low if interval else None
        row[f"{key}_high"] = interval.high if interval else None
    row |= {key: getattr(method, key) for key in _RATES}
    row["unavailable"] = method.unavailable
    return row | {f"lossless_{key}": getattr(method.lossless, key) for key in LosslessCount.model_fields}
