"""Bench results as answer files of Spec-Bench."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfspec_tune.files import write_atomic
from selfspec_tune.results import ArmRun, BenchResult, PairedRun
from selfspec_tune.results.metrics import AUTOREGRESSIVE


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


def spec_bench_rows(
    runs: Sequence[PairedRun], method: str, *, answers: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Answer rows for Spec-Bench's ``evaluation/speed.py``, one a prompt, one choice a round.

    ``method`` is a method's id, or ``autoregressive`` for the baseline file that speed.py
    reads beside it. Accepted lengths hold the bonus token, wall time the prefill. speed.py
    counts the baseline's tokens by tokenizing its ``turns`` again, so that file needs
    ``answers``: generated text by prompt id. It reads the first choice only.
    """
    is_baseline = method == AUTOREGRESSIVE
    chosen = runs if is_baseline else [run for run in runs if run.method == method]
    by_prompt: dict[str, dict[int, PairedRun]] = {}
    for run in chosen:
        by_prompt.setdefault(run.prompt_id, {}).setdefault(run.round, run)
    question_ids = _question_ids(list(by_prompt))
    stamp = time.time()
    rows = []
    for prompt_id, rounds in by_prompt.items():
        text = (answers or {}).get(prompt_id, "")
        ordered = [rounds[number] for number in sorted(rounds)]
        arms = [run.baseline if is_baseline else run.candidate for run in ordered]
        rows.append(
            {
                "question_id": question_ids[prompt_id],
                "category": ordered[0].task,
                "model_id": method,
                "choices": [_choice(index, arm, text) for index, arm in enumerate(arms)],
                "tstamp": stamp,
            }
        )
    return rows


def _question_ids(prompt_ids: Sequence[str]) -> dict[str, int | str]:
    """Spec-Bench's question numbers where the ids end in distinct ones, else the ids themselves."""
    numbers = [prompt_id.rsplit("/", 1)[-1] for prompt_id in prompt_ids]
    if all(number.isdecimal() for number in numbers) and len(set(map(int, numbers))) == len(numbers):
        return {prompt_id: int(number) for prompt_id, number in zip(prompt_ids, numbers, strict=True)}
    return {prompt_id: prompt_id for prompt_id in prompt_ids}


def _choice(index: int, arm: ArmRun, text: str) -> dict[str, Any]:
    accepted = [one.num_tokens for one in arm.rounds] or [1] * arm.num_tokens
    return {
        "index": index,
        "turns": [text],
        "decoding_steps": [len(accepted)],
        "new_tokens": [arm.num_tokens],
        "wall_time": [arm.total_seconds],
        "accept_lengths": accepted,
    }
