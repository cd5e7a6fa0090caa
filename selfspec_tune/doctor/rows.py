"""From raw timings to what doctor prints: bytes, shares of the limit, ratios to a decode step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from selfspec_tune.diagnosis import ContextTiming, KernelTiming, Spread, StepTiming
from selfspec_tune.draft import Draft
from selfspec_tune.engine.step_timings import ContextTimings
from selfspec_tune.measure.roofline import Limit, ReadKernel, find_limit
from selfspec_tune.measure.traffic import Traffic

DRAFT = "draft"


def context_rows(
    timings: ContextTimings, kernels: Sequence[ReadKernel], sizes: Mapping[str, int], traffic: Traffic, draft: Draft
) -> ContextTiming:
    """One context's kernels and steps. ``sizes`` are the kernels' bytes a call."""
    limit, length = find_limit(kernels, sizes, timings.others), timings.length
    decode = timings.verify[0]
    steps = [_row("decode", decode, decode, limit, traffic.full_step(length))]
    if DRAFT in timings.others:
        steps.append(_row(DRAFT, timings.others[DRAFT], decode, limit, traffic.draft_step(draft, length)))
    for k, seconds in enumerate(timings.verify):
        if k > 0:
            steps.append(_row(f"verify({k})", seconds, decode, limit, traffic.full_step(length, k + 1)))
    return ContextTiming(
        length=length,
        rounds=len(decode),
        limit=limit.name,
        kernels=[
            KernelTiming(name=kernel.name, bytes=sizes[kernel.name], seconds=Spread.of(timings.others[kernel.name]))
            for kernel in kernels
        ],
        steps=steps,
    )


def _row(name: str, seconds: Sequence[float], decode: Sequence[float], limit: Limit, num_bytes: float) -> StepTiming:
    return StepTiming(
        name=name,
        seconds=Spread.of(seconds),
        bytes=num_bytes,
        of_limit=limit.share(num_bytes, seconds),
        to_decode=median(step / plain for step, plain in zip(seconds, decode, strict=True)),
    )
