"""Benchmarks of skip sets on prompts that their search never read."""

from selfspec_tune.bench.function import bench
from selfspec_tune.bench.run import run_bench
from selfspec_tune.bench.sweep import run_sweep
from selfspec_tune.callable_package import make_callable

__all__ = ["bench", "run_bench", "run_sweep"]

make_callable(__name__, bench)
