"""Results in other programs' files: skip-set dialects, tables, Spec-Bench answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfspec_tune.dialects import SKIP_CONFIG, Dialect, read_skip_set, to_dialect
from selfspec_tune.errors import UnknownModelError, UsageError
from selfspec_tune.files import read_json, write_atomic
from selfspec_tune.models.aliases import close_aliases, resolve
from selfspec_tune.results import BenchResult, SweepResult
from selfspec_tune.summary import AUTOREGRESSIVE, spec_bench_rows, sweep_to_frame, to_frame

if TYPE_CHECKING:
    import pandas as pd


def export_dialect(source: Path, dialect: Dialect, *, task: str | None = None, model: str | None = None) -> Any:
    """The skip set of ``source``, a skip.json or any dialect's file, as a JSON value in ``dialect``.

    ``model`` names the model in the result; it is needed where ``source`` does not say
    which model, or how deep a model, it is for. ``task`` is needed by dialects that key
    by task. Raises `FileFormatError`, `SkipSetError` or `UnknownModelError`.
    """
    depth = None if model is None else known_num_layers(model)
    skip_set, found = read_skip_set(source, num_layers=depth)
    name = model or _stated_model(source, found)
    return to_dialect(skip_set, dialect, model_name=Path(name).name, task=task)


def known_num_layers(model: str) -> int:
    """A model's depth without loading it: from the alias table or a local ``config.json``.

    Raises `UnknownModelError` for anything else.
    """
    alias = resolve(model)
    if alias is not None:
        return alias.num_layers
    config = Path(model) / "config.json"
    if not config.is_file():
        close = close_aliases(model)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise UnknownModelError(
            f"The depth of {model!r} is not known here; expected an alias that `selfspec-tune models` "
            f"lists, or a local directory with a config.json.{hint}"
        )
    depth = read_json(config).get("num_hidden_layers")
    if not isinstance(depth, int):
        raise UnknownModelError(f"{config} has no num_hidden_layers; expected a decoder-only language model.")
    return depth


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


def _stated_model(source: Path, dialect: str) -> str:
    model = read_json(source)["model"] if dialect == SKIP_CONFIG else {}
    name = model.get("name") or model.get("id")
    if not name:
        raise UsageError(f"{source} does not say which model it is for; name it with --model.")
    return str(name)
