"""Results built from scripted runs, for tests of what is printed and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.intervals import Interval
from selfspec_tune.results import (
    BenchResult,
    DraftSettings,
    ModelInfo,
    NullRun,
    RouterResult,
    Score,
    SkipConfig,
    SkipLayers,
    TransferResult,
    TransferRow,
)
from selfspec_tune.results.metrics import memory_limit, summarise, summarise_baseline
from tests.runs import paired_run

MODEL = ModelInfo(
    id="org/Tiny-12L",
    name="tiny",
    fingerprint="00ff00ff00ff00ff",
    num_layers=12,
    dtype="float32",
    device="cpu",
)
LIMITED = {"plain_bytes": 2e9, "memory_bytes_per_second": 20e9}  # of runs beside which the memory was measured
SKIP = SkipSet(12, (2, 3, 4, 9), (5,))
FASTER = Interval(1.21, 1.15, 1.27)

# A manifest of an export as the first version wrote it; others have come to say more.
OLDEST_EXPORT: dict[str, Any] = {
    "schema": "selfspec-tune/export",
    "version": 1,
    "format": "nas",
    "model": "org/tiny",
    "model_fingerprint": "0123456789abcdef",
    "skip": {"attention": [0], "mlp": []},
    "layers": [{"attention": None, "mlp": 0}, {"attention": 1, "mlp": 1}],
    "draft_bytes": 50,
    "target_bytes": 90,
    "draft_tokens": 4,
    "launch": {"vllm": "vllm serve org/tiny"},
    "notes": ["as slow as its target"],
    "files": {"config.json": 2},
}
EXPORT: dict[str, Any] = OLDEST_EXPORT | {
    "revision": None,
    "gguf": None,
    "read_prompts": ["aa"],
    "settings": {"exit_threshold": 0.5},
    "sampling": {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
    "generation_config": {"do_sample": True, "eos_token_id": [1, 2]},
}
VERIFIED: dict[str, Any] = {
    "runtime": "transformers 5",
    "prompts": 4,
    "tokens": 100,
    "equal_tokens": 100,
    "logprob_difference": 1e-6,
    "same_texts": 4,
    "drafted": 90,
    "accepted": 40,
    "expected_drafted": 90,
    "expected_accepted": 40,
    "left_out": 0,
    "rounds": False,
    "verdict": "exact",
}


def skip_config(**fields: Any) -> SkipConfig:
    """A skip.json that was found faster."""
    values: dict[str, Any] = {
        "model": MODEL,
        "skip": SkipLayers.model_validate(SKIP.to_dict()),
        "draft": DraftSettings(policy="threshold", max_draft_tokens=6, exit_threshold=0.6),
        "score": Score(verdict="faster", end_to_end_speedup=FASTER, decode_speedup=FASTER, num_prompts=32),
        "provenance": {
            "created": "2031-01-02T03:04:05+00:00",
            "selfspec_tune": {"version": "0.1.0", "commit": "0123456789abcdef"},
            "packages": {"torch": "2.13.0"},
            "hardware": {"cpu": "Some CPU", "threads": 2, "gpu": None},
            "seed": 7,
            "prompts": {"source": "builtin", "calibration": ["a"], "selection": ["b"], "test": ["c", "d"]},
        },
    }
    return SkipConfig(**(values | fields))


def bench_result(
    *, second_skip_set: bool = False, run_fields: dict[str, Any] | None = None, **fields: Any
) -> BenchResult:
    """A bench of the baseline and one self-speculative method over 32 prompts of two tasks."""
    runs = [
        paired_run(
            f"set/{i}",
            task="code" if i % 2 else "maths",
            method="self-speculative",
            candidate=(11, 0.5, 1.0 + 0.1 * (i % 5)),
            **(run_fields or {}),
        )
        for i in range(32)
    ]
    methods = [summarise_baseline(runs), summarise("self-speculative", "self-speculative", runs, skip=SKIP)]
    if second_skip_set:
        methods.append(summarise("self-speculative:other", "self-speculative", runs, skip=SkipSet(12, (1,))))
    verdict = "withheld" if methods[1].lossless.mismatches else "faster"
    even = Interval(1.0, 0.98, 1.02)
    values: dict[str, Any] = {
        "model": MODEL,
        "verdict": verdict,
        "methods": methods,
        "a_a": NullRun(end_to_end=even, decode=even, num_prompts=8),
        "baseline_vs_generate": 1.3,
        "memory_limit": memory_limit(runs),
        "runs": runs,
    }
    return BenchResult(**(values | fields))


def save_study(folder: Path, config: SkipConfig | None = None) -> Path:
    """A finished study's two result files."""
    (config or skip_config()).save(folder / "skip.json")
    bench_result().save(folder / "bench.json")
    return folder


TASKS = {"chat": 12, "code": 11, "maths": 12, "qa": 12, "rewrite": 11, "summarise": 12}
UNSURE = Interval(1.02, 0.97, 1.08)
CELL = Interval(1.21, 1.15, 1.27)


def transfer_row(name: str, **fields: Any) -> TransferRow:
    """One draft, as fast everywhere."""
    values: dict[str, Any] = {
        "folder": name,
        "method": f"m-{name}",
        "draft": "attn 2",
        "skip": SkipLayers(attention=[2]),
        "by_task": dict.fromkeys(TASKS, CELL),
        "overall": CELL,
        "selection_speedup": CELL,
    }
    return TransferRow(name=name, **(values | fields))


def transfer_result(ratio: Interval | None = UNSURE, **fields: Any) -> TransferResult:
    """The matrix of seven drafts, and two routers that are ``ratio`` times as fast as one of them."""
    routers = [
        RouterResult(
            name=name, end_to_end_speedup=CELL if ratio else None, ratio_to_single=ratio, accuracy=share, picks={}
        )
        for name, share in (("own task", 1.0), ("nearest task", 0.75))
    ]
    rows = [transfer_row(name) for name in ("all", *TASKS)]
    values: dict[str, Any] = {"model": MODEL, "tasks": TASKS, "rows": rows, "single": "all", "routers": routers}
    return TransferResult(**(values | fields))
