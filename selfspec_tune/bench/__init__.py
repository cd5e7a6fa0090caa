"""Benchmarks of skip sets on prompts that their search never read."""

from selfspec_tune.bench.run import run_bench

__all__ = ["run_bench"]
