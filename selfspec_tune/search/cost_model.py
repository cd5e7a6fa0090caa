"""The cost model, measured from the engine's own steps on this machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from time import perf_counter

from selfspec_tune.draft import Draft
from selfspec_tune.engine import Runner
from selfspec_tune.search.replay import CostModel
from selfspec_tune.skip_set import SkipSet

_VERIFY_TOKENS = (1, 2, 3, 4, 5, 7, 9, 13, 17)


def measure_costs(
    runner: Runner,
    context: Sequence[int],
    *,
    context_length: int,
    vocabulary: int | None = None,
    repeats: int = 5,
) -> CostModel:
    """Time decode, verify(k) and draft steps after ``context`` tokens, interleaved; medians of ``repeats``."""
    layers = range(runner.num_layers)
    context = context[: max(1, context_length - max(_VERIFY_TOKENS) - 1)]
    runner.reserve(len(context) + max(_VERIFY_TOKENS) + 1)
    runner.prefill(context)
    prefix = runner.length
    drafts = {
        "full": Draft(SkipSet.empty(runner.num_layers), vocabulary=vocabulary),
        "no_attention": Draft(SkipSet(runner.num_layers, tuple(layers)), vocabulary=vocabulary),
        "no_mlp": Draft(SkipSet(runner.num_layers, (), tuple(layers)), vocabulary=vocabulary),
    }
    token = context[-1]
    steps: dict[str, Callable[[], object]] = {
        f"verify {k}": partial(runner.verify, [token] * k) for k in _VERIFY_TOKENS if k > 1
    }
    steps["verify 1"] = lambda: runner.decode(token)
    steps |= {name: lambda: runner.draft_step(token) for name in drafts}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            if name in drafts:
                runner.set_draft(drafts[name])
            seconds[name].append(_timed(runner, step))
            runner.rewind(prefix)
    typical = {name: median(times[1:]) for name, times in seconds.items()}  # the first is a warm-up
    return _fit(typical, runner.num_layers)


def _timed(runner: Runner, step: Callable[[], object]) -> float:
    runner.synchronize()
    begun = perf_counter()
    step()
    runner.synchronize()
    return perf_counter() - begun


def _fit(typical: dict[str, float], num_layers: int) -> CostModel:
    attention = max(typical["full"] - typical["no_attention"], 0.0) / num_layers
    mlp = max(typical["full"] - typical["no_mlp"], 0.0) / num_layers
    base = max(typical["full"] - num_layers * (attention + mlp), 0.0)
    return CostModel(_interpolated(typical), base, attention, mlp, num_layers)


def _interpolated(typical: dict[str, float]) -> tuple[float, ...]:
    """Verification of 1, 2, … tokens; lengths between measured ones lie on a line."""
    times: list[float] = []
    for low, high in itertools.pairwise(_VERIFY_TOKENS):
        first, last = typical[f"verify {low}"], typical[f"verify {high}"]
        times += [first + (last - first) * (k - low) / (high - low) for k in range(low, high)]
    return (*times, typical[f"verify {_VERIFY_TOKENS[-1]}"])
