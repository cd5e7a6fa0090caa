"""What calibration takes, as its text and the model's depth grow: time and memory of answers and of the scorer."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch
from random_model import random_model

from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits
from selfspec_tune.engine.runners.fast import FastRunner
from selfspec_tune.engine.teacher_forcing import DraftScorer, make_scorer
from selfspec_tune.files import append_jsonl, read_jsonl
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.prompts import Prompt
from selfspec_tune.reporting import SilentReporter
from selfspec_tune.requests import PromptOptions
from selfspec_tune.search.stages.calibration import calibrate, sources_alone, spread_windows
from selfspec_tune.search.stages.replay import best_policy, policies

# As narrow as may be: what is measured is what grows with depth and text.
_WIDTH, _HEADS, _KV_HEADS, _HEAD_SIZE, _VOCABULARY = 256, 8, 4, 64, 512
_DTYPE = torch.bfloat16
_NUM_DRAFTS = 4
_LOOK_SECONDS = 0.002
_STEPS = StepCosts(decode=1.0, draft=0.3, verify=tuple(1 + 0.04 * k for k in range(17)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration of a model of ``layers`` on one window of ``positions`` in each of ``answers`` answers."""

    layers: int
    answers: int
    prompt_tokens: int = 192
    answer_tokens: int = 64
    positions: int = 40


def run_calibrations(cells: Iterable[Calibration], folder: Path, command: Sequence[str]) -> list[dict[str, Any]]:
    """A record for each cell, measured in its own process: ``command`` with the cell as JSON. Kept as they come."""
    log = folder / "calibration.jsonl"
    known = {json.dumps(row["cell"]): row for row in read_jsonl(log)}
    wanted = [asdict(cell) for cell in cells]
    for cell in wanted:
        if json.dumps(cell) not in known:
            print(f"[calibration] {cell['layers']} layers, {cell['answers']} answers", flush=True)
            done = subprocess.run([*command, json.dumps(cell)], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:  # it has said why
                sys.exit(done.returncode)
            known[json.dumps(cell)] = row = {"cell": cell, **json.loads(done.stdout.splitlines()[-1])}
            append_jsonl(log, row)
    return [known[json.dumps(cell)] for cell in wanted]


def measure(cell: Calibration) -> dict[str, Any]:
    """Seconds and bytes of one calibration, in this process. ``tokens``: whose keys and values the scorer keeps."""
    shape = {
        "model_type": "llama",
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": cell.layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "head_dim": _HEAD_SIZE,
        "vocab_size": _VOCABULARY,
    }
    context = cell.prompt_tokens + cell.answer_tokens + 1
    loaded = random_model("random", shape, torch.device("cpu"), _DTYPE, context)
    runner = FastRunner(loaded)
    runner.reserve(context)
    options = PromptOptions(max_new_tokens=cell.answer_tokens, num_prompts=cell.answers)
    items = _items(cell)
    with TemporaryDirectory() as scratch:
        begun = perf_counter()
        workload = Workload(loaded, runner, options)
        draft = sources_alone(Draft(SkipSet.empty(cell.layers)))
        answers = calibrate(workload, items, draft, Path(scratch) / "calibration.json", SilentReporter())
        answer_seconds = perf_counter() - begun
    windows = [w for _, w in spread_windows(answers, length=cell.positions, most=cell.answers, seed=0)]
    give_back_free_memory()
    with MemoryMeter() as meter:
        begun = perf_counter()
        scorer = make_scorer(runner, loaded, windows)
        built_seconds = perf_counter() - begun
        give_back_free_memory()
        kept = meter.grown()
        evaluations, replays = _evaluate(scorer, cell.layers)
    return {
        "tokens": sum(window.end for window in windows),
        "positions": sum(window.end - window.start for window in windows),
        "answer_seconds": answer_seconds,
        "scorer_seconds": built_seconds,
        "evaluation_seconds": evaluations,
        "replay_seconds": replays,
        "kept_bytes": kept,
        "peak_bytes": meter.most,
        "formula_bytes": kv_bytes(cell.layers, _KV_HEADS, _HEAD_SIZE, _DTYPE.itemsize) * sum(w.end for w in windows),
    }


def kv_bytes(layers: int, kv_heads: int, head_size: int, itemsize: int) -> int:
    """Bytes of a token's keys and values in all layers."""
    return 2 * layers * kv_heads * head_size * itemsize


def _items(cell: Calibration) -> list[WorkItem]:
    generator = Random(0)
    drawn = [tuple(generator.choices(range(_VOCABULARY), k=cell.prompt_tokens)) for _ in range(cell.answers)]
    limits = Limits(cell.answer_tokens)
    return [WorkItem(str(i), Prompt(str(i), "random", str(i)), tokens, limits) for i, tokens in enumerate(drawn)]


def _evaluate(scorer: DraftScorer, num_layers: int) -> tuple[list[float], list[float]]:
    """Seconds of the passes and of the replays of drafts that share no beginning; a quarter of the model left out."""
    passes, replays = [], []
    grid = list(policies(PolicyKind.COST_AWARE))
    for seed in range(_NUM_DRAFTS):
        skipped = SkipSet.random(num_layers, num_layers // 4, num_layers // 4, seed=seed)
        begun = perf_counter()
        trace = scorer.trace(Draft(skipped))
        traced = perf_counter()
        best_policy(trace, _STEPS, grid)
        passes.append(traced - begun)
        replays.append(perf_counter() - traced)
    return passes, replays


def give_back_free_memory() -> None:
    """Return what the C library holds free to the system, where it can: else new data hides in it."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class MemoryMeter:
    """Bytes of resident memory beyond those on entering, and the most of them, looked at every few milliseconds.

    The system's own record of the largest includes what loading the model took.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._ended = Event()
        self._watch = Thread(target=self._look, daemon=True)
        self.most = 0

    def __enter__(self) -> MemoryMeter:
        self._before = int(self._process.memory_info().rss)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def grown(self) -> int:
        """Bytes now."""
        grown = int(self._process.memory_info().rss) - self._before
        self.most = max(self.most, grown)
        return grown

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            self.grown()


def fit(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Kept bytes as a constant, a part for each token, and one for each token and layer; seconds alike.

    The last is what the formula gives: keys and values.
    """
    tokens = np.array([row["tokens"] for row in rows], dtype=float)
    products = tokens * [row["cell"]["layers"] for row in rows]
    matrix = np.stack([np.ones_like(tokens), tokens, products], 1)
    kept, seconds = (np.array([row[name] for row in rows], dtype=float) for name in ("kept_bytes", "scorer_seconds"))
    of_bytes, of_seconds = (np.linalg.lstsq(matrix, values, rcond=None)[0] for values in (kept, seconds))
    spread = float(np.sum((kept - kept.mean()) ** 2))
    residual = float(np.sum((kept - matrix @ of_bytes) ** 2))
    return {
        "bytes_per_token": float(of_bytes[1]),
        "bytes_per_token_and_layer": float(of_bytes[2]),
        "formula_bytes_per_token_and_layer": float(kv_bytes(1, _KV_HEADS, _HEAD_SIZE, _DTYPE.itemsize)),
        "scorer_seconds_per_token_and_layer": float(of_seconds[2]),
        "r_squared": 1 - residual / spread if spread else 1.0,
    }
