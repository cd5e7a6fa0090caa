"""What doctor's raw timings mean: rows beside the memory's limit, and findings in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.engine.timing import ContextTimings
from selfspec_tune.measure.roofline import Limit, ReadKernel, find_limit
from selfspec_tune.measure.traffic import Traffic
from selfspec_tune.results.diagnosis import (
    Check,
    ContextTiming,
    DraftTiming,
    KernelTiming,
    RoundOverhead,
    StepTiming,
)
from selfspec_tune.results.memory_limit import Spread

DRAFT = "draft"
COPIES = {precision: f"draft at {precision}" for precision in (Precision.INT8, Precision.INT4)}
_AT_THE_LIMIT = 0.85
_HALF_WAY = 0.5
_LEAST_SHARE = 0.6  # of the limit, that decoding should reach on any machine
_BEYOND = 1.05
_SHARE_GAP = 0.05  # of a draft step's share of bytes
_DEAR_VERIFICATION = 1.3
_LARGEST_OVERHEAD = 0.02
_LARGEST_GAP = 0.05
_ROUND = 4  # drafted tokens of the example round

"""Steps of the whole model's copies: what each precision leaves of a decode step."""


def context_rows(
    timings: ContextTimings, kernels: Sequence[ReadKernel], sizes: Mapping[str, int], traffic: Traffic, draft: Draft
) -> ContextTiming:
    """One context's kernels and steps, copies of the whole model's where they were timed there.

    ``sizes`` are the kernels' bytes a call. No share of the limit is told of a step that may have read fewer bytes
    than counted: one in which a mixture's tokens may share experts, or where all experts count.
    """
    best, length = find_limit(kernels, sizes, timings.others), timings.length
    limit, verification_limit = None if traffic.counts_all else best, None if traffic.has_experts else best
    decode = timings.verify[0]
    steps = [_row("decode", decode, decode, limit, traffic.full_step(length))]
    if DRAFT in timings.others:
        steps.append(_row(DRAFT, timings.others[DRAFT], decode, limit, traffic.draft_step(draft, length)))
    for timed in timings.drafts:
        if (name := _copy_name(timed.draft)) is not None:
            steps.append(_row(name, timed.seconds, decode, limit, traffic.draft_step(timed.draft, length)))
    for k, seconds in timings.verify.items():
        if k > 0:
            steps.append(_row(f"verify({k})", seconds, decode, verification_limit, traffic.full_step(length, k + 1)))
    return ContextTiming(
        length=length,
        rounds=len(decode),
        limit=best.name,
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
    return COPIES.get(head) if is_whole and draft.experts is None else None


def _row(
    name: str, seconds: Sequence[float], decode: Sequence[float], limit: Limit | None, num_bytes: float
) -> StepTiming:
    return StepTiming(
        name=name,
        seconds=Spread.of(seconds),
        bytes=num_bytes,
        of_limit=limit.share(num_bytes, seconds) if limit is not None else None,
        to_decode=median(step / plain for step, plain in zip(seconds, decode, strict=True)),
    )


def find_out(
    context: ContextTiming, draft: DraftTiming | None, overhead: RoundOverhead | None, residual: float | None
) -> list[str]:
    """Sentences about one context's rows, the fit and the real rounds, the most important first."""
    found = [*_decode(context), *_draft(context), *_copies(context), *_verification(context)]
    if overhead is not None:
        found.append(_overhead(overhead))
    if residual is not None:
        found.append(_fit(residual, draft))
    return found


def check_decode(context: ContextTiming, runner: str) -> list[Check]:
    """Whether decoding by ``runner`` comes near enough to the limit, where that is known."""
    step = context.step("decode")
    if step is None or step.of_limit is None:
        return []
    reached = f"Decode reaches {step.of_limit:.0%} of what this machine can read"
    if step.of_limit >= _LEAST_SHARE:
        return [Check(name="decode speed", status="ok", detail=reached)]
    advice = (
        "the kernels compute for longer than memory takes, or others use the machine. See above what compiled them and "
        "for which level, and run again on a quiet machine"
        if runner == "native"
        else f"the {runner} runner spends the rest on computing and on starting small kernels"
    )
    return [Check(name="decode speed", status="warning", detail=f"{reached}: {advice}")]


def _decode(context: ContextTiming) -> Iterator[str]:
    step = context.step("decode")
    if step is None or step.of_limit is None:
        return
    # Not by the step's median time: where the memory has two speeds, medians may be of rounds of either.
    limit = context.limit_bytes_per_second / 1e9
    yield (
        f"Decode runs at {step.of_limit:.0%} of what this machine can read ({step.of_limit * limit:.1f} of "
        f"{limit:.1f} GB/s, the limit by its best kernel, {context.limit}). {_meaning(step.of_limit)}"
    )


def _meaning(share: float) -> str:
    if share > _BEYOND:
        return "More than the memory delivers: a good part of the model stays in the cache from step to step."
    if share >= _AT_THE_LIMIT:
        return "Memory limits it: only reading fewer bytes makes it faster."
    if share >= _HALF_WAY:
        return "Memory limits most of it; the rest is work around the reads (small kernels, one after another)."
    return "Memory does not limit it: computing, or starting many small kernels, does."


def _draft(context: ContextTiming) -> Iterator[str]:
    decode, draft = context.step("decode"), context.step("draft")
    if decode is None or draft is None or not decode.bytes or draft.bytes is None:
        return
    share = draft.bytes / decode.bytes
    text = f"A draft step takes {draft.to_decode:.0%} of a decode step's time and reads {share:.0%} of its bytes"
    gap = draft.to_decode / share - 1
    more = f": {gap:.0%} more than its share, for costs that no skipping saves" if gap > _SHARE_GAP else ""
    yield f"{text}{more}."
    verified = context.step(f"verify({_ROUND})")
    if verified is not None:
        yield _round(_ROUND * draft.to_decode + verified.to_decode)


def _round(cost: float) -> str:
    """What a round that costs so many decode steps must yield."""
    text = f"A round of {_ROUND} drafts costs {cost:.1f} decode steps"
    if cost >= _ROUND + 1:
        return f"{text} and yields at most {_ROUND + 1} tokens: with this draft it cannot pay."
    return f"{text}: it pays where more than {max(cost - 1, 0.0):.1f} of them are accepted."


def _copies(context: ContextTiming) -> Iterator[str]:
    """What copies of the whole model leave of a decode step, before anything is skipped."""
    found = [(precision, step) for precision, name in COPIES.items() if (step := context.step(name)) is not None]
    if found:
        shares = " and ".join(f"{step.to_decode:.2f}× at {precision}" for precision, step in found)
        yield f"A draft step that skips nothing takes {shares} of a decode step."


def _verification(context: ContextTiming) -> Iterator[str]:
    step, fewer = context.step("verify(8)"), context.step("verify(4)")
    if step is None:
        return
    text = f"Verifying 8 drafted tokens costs {step.to_decode:.2f}× a decode step"
    text += f", verifying 4 of them {fewer.to_decode:.2f}×" if fewer is not None else ""
    decode = context.step("decode")
    growth = step.bytes / decode.bytes if step.bytes and decode is not None and decode.bytes else 1.0
    if step.to_decode <= _DEAR_VERIFICATION:
        yield f"{text}: nearly free, as it is where memory limits."
    elif growth > _DEAR_VERIFICATION:  # only a mixture of experts reads more for more tokens
        yield f"{text}, and reads up to {growth:.1f}× its bytes, as tokens go to other experts: short drafts pay best."
    else:
        yield f"{text}: computing limits it, so short drafts pay best."


def _overhead(overhead: RoundOverhead) -> str:
    text = f"{overhead.share:.1%} of a real generation passes outside forward passes"
    if overhead.share > _LARGEST_OVERHEAD:
        text += ", more than the 2 % that it should be"
    if overhead.over_steps is not None:
        text += f"; it takes {overhead.over_steps:.2f}× what its steps take alone"
    return f"{text}."


def _fit(residual: float, draft: DraftTiming | None) -> str:
    text = f"Draft steps cost the sum of their parts within {residual:.1%}"
    if draft is None or not draft.predicted_step or not draft.measured_step:
        return f"{text}."
    gap = draft.measured_step / draft.predicted_step - 1
    text += f"; this draft was predicted at {1e3 * draft.predicted_step:.2f} ms and took {gap:+.1%}"
    if abs(gap) <= _LARGEST_GAP:
        return f"{text}."
    return f"{text}: too far off to plan with. Run again on a quiet machine; if the gap stays, report it."
