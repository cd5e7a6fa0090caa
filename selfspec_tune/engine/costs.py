"""What the steps of one draft take on this machine, timed on the engine itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter

from selfspec_tune.costs import StepCosts
from selfspec_tune.draft import Draft
from selfspec_tune.engine.runner import Runner

VERIFY_TOKENS = (2, 3, 5, 9, 17)


def measure_step_costs(runner: Runner, context: Sequence[int], draft: Draft, *, repeats: int = 4) -> StepCosts:
    """Time decode, draft step and verification of 2 … 17 tokens after ``context``, interleaved.

    Medians of ``repeats``, after one warm-up each; verifications between those timed lie on
    a line. The cache holds ``context`` afterwards. Raises `PromptError` where the model's
    context cannot hold it and the longest verification.
    """
    runner.set_draft(draft)
    runner.reserve(len(context) + max(VERIFY_TOKENS))
    runner.prefill(context)
    prefix, token = runner.length, context[-1]
    steps: list[Callable[[], object]] = [partial(runner.decode, token)]
    if draft.model_drafts:
        steps.append(partial(runner.draft_step, token))
    steps += [partial(runner.verify, [token] * number) for number in VERIFY_TOKENS]
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats + 1):
        for times, step in zip(seconds, steps, strict=True):
            times.append(timed(runner, step))
            runner.rewind(prefix)
    decode, *others = (median(times[1:]) for times in seconds)
    drafting = others.pop(0) if draft.model_drafts else 0.0
    return StepCosts(decode, drafting, _interpolated([decode, *others]))


def timed(runner: Runner, step: Callable[[], object]) -> float:
    """Seconds of one synchronised step."""
    runner.synchronize()
    begun = perf_counter()
    step()
    runner.synchronize()
    return perf_counter() - begun


def _interpolated(measured: Sequence[float]) -> tuple[float, ...]:
    """Passes over 1, 2, … tokens from those over 1 and `VERIFY_TOKENS`."""
    known = zip((1, *VERIFY_TOKENS), measured, strict=True)
    times = [measured[0]]
    for (low, first), (high, last) in pairwise(known):
        times += [first + (last - first) * (number - low) / (high - low) for number in range(low + 1, high + 1)]
    return tuple(times)
