"""Benchmarks of skip sets on prompts that their search never read."""

from selfspec_tune.bench.run import run_bench
from selfspec_tune.bench.sweep import run_sweep

__all__ = ["run_bench", "run_sweep"]
