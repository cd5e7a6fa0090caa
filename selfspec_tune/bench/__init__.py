"""Benchmarks of skip sets on prompts that their search never read."""

from __future__ import annotations

from selfspec_tune.bench.compare import Comparison, run_comparison
from selfspec_tune.bench.per_task import PerTask, plan_per_task, run_per_task
from selfspec_tune.bench.run import bench, run_bench
from selfspec_tune.bench.sweep import run_sweep
from selfspec_tune.callable_package import make_callable

__all__ = [
    "Comparison",
    "PerTask",
    "bench",
    "plan_per_task",
    "run_bench",
    "run_comparison",
    "run_per_task",
    "run_sweep",
]

make_callable(__name__, bench)
