"""Bench results in other programs' files: tables, Spec-Bench answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.files import write_atomic
from selfspec_tune.results import BenchResult, SweepResult
from selfspec_tune.results.metrics import AUTOREGRESSIVE, spec_bench_rows, sweep_to_frame, to_frame

if TYPE_CHECKING:
    import pandas as pd


def write_csv(result: BenchResult | SweepResult, path: Path) -> None:
    """A row a method, in a sweep at each value. Raises `StorageError`."""
    write_atomic(path, _frame(result).to_csv(index=False))


def write_parquet(result: BenchResult | SweepResult, path: Path) -> None:
    """A row a method, in a sweep at each value. Raises `StorageError`."""
    write_atomic(path, _frame(result).to_parquet(index=False))


def _frame(result: BenchResult | SweepResult) -> pd.DataFrame:
    return sweep_to_frame(result) if isinstance(result, SweepResult) else to_frame(result)


def write_spec_bench(result: BenchResult, method_id: str, path: Path) -> list[Path]:
    """Answer files for Spec-Bench's ``speed.py``: the method's, and the baseline's beside it.

    The baseline's is written only where the runs kept its text: the script counts its
    tokens by tokenizing the text again. Returns the files written; raises `StorageError`.
    """
    _write_rows(path, spec_bench_rows(result.runs, method_id))
    texts = {run.prompt_id: (run.model_extra or {}).get("text") for run in result.runs}
    answers = {prompt_id: text for prompt_id, text in texts.items() if isinstance(text, str)}
    if len(answers) < len(texts):
        return [path]
    baseline = path.with_name(f"{path.stem}-{AUTOREGRESSIVE}{path.suffix}")
    _write_rows(baseline, spec_bench_rows(result.runs, AUTOREGRESSIVE, answers=answers))
    return [path, baseline]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
