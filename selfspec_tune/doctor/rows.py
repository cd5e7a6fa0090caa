"""From raw timings to what doctor prints: bytes, shares of the limit, ratios to a decode step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from selfspec_tune.diagnosis import ContextTiming, KernelTiming, Spread, StepTiming
from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.engine.step_timings import ContextTimings
from selfspec_tune.measure.roofline import Limit, ReadKernel, find_limit
from selfspec_tune.measure.traffic import Traffic

DRAFT = "draft"
COPIES = {precision: f"draft at {precision}" for precision in (Precision.INT8, Precision.INT4)}
"""Steps of the whole model's copies: what each precision leaves of a decode step."""


def context_rows(
    timings: ContextTimings, kernels: Sequence[ReadKernel], sizes: Mapping[str, int], traffic: Traffic, draft: Draft
) -> ContextTiming:
    """One context's kernels and steps, copies of the whole model's where they were timed there.

    ``sizes`` are the kernels' bytes a call.
    """
    limit, length = find_limit(kernels, sizes, timings.others), timings.length
    decode = timings.verify[0]
    steps = [_row("decode", decode, decode, limit, traffic.full_step(length))]
    if DRAFT in timings.others:
        steps.append(_row(DRAFT, timings.others[DRAFT], decode, limit, traffic.draft_step(draft, length)))
    for timed in timings.drafts:
        if (name := _copy_name(timed.draft)) is not None:
            steps.append(_row(name, timed.seconds, decode, limit, traffic.draft_step(timed.draft, length)))
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


def _copy_name(draft: Draft) -> str | None:
    """What a step is called that skips nothing and reads copies at one precision; None for any other."""
    num_layers, head = draft.skip_set.num_layers, draft.precision.head
    is_whole = draft.skip_set.is_empty and draft.precision == DraftPrecision.uniform(num_layers, head, head)
    return COPIES.get(head) if is_whole else None


def _row(name: str, seconds: Sequence[float], decode: Sequence[float], limit: Limit, num_bytes: float) -> StepTiming:
    return StepTiming(
        name=name,
        seconds=Spread.of(seconds),
        bytes=num_bytes,
        of_limit=limit.share(num_bytes, seconds),
        to_decode=median(step / plain for step, plain in zip(seconds, decode, strict=True)),
    )
