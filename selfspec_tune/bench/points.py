"""The points of a sweep: what each value changes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from selfspec_tune.bench.run import BenchSetting
from selfspec_tune.draft import Draft
from selfspec_tune.errors import PromptError, UsageError
from selfspec_tune.measure.workload import WorkItem, Workload
from selfspec_tune.prompts import Prompt, Template, draw_prompts, load_prompts, may_fit, render
from selfspec_tune.prompts.lengthen import documents_for, lengthened
from selfspec_tune.reporting import Reporter
from selfspec_tune.requests import SWEEP_VALUES, SweepKind, SweepRequest

# Of the prompts, as many must be short enough for a context length that was not asked for.
_LEAST_FITTING = 0.75


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a sweep: the workload and items there, and the draft that a skip set has there."""

    value: float
    workload: Workload
    items: Sequence[WorkItem]
    vary: Callable[[Draft], Draft] = lambda draft: draft


def sweep_points(request: SweepRequest, setting: BenchSetting, reporter: Reporter) -> list[Point]:
    """The request's points, or those of the usual values that model, prompts and answers allow.

    Raises `UsageError` or `PromptError` where an asked value is not possible, or fewer than two are left.
    """
    make = {
        SweepKind.CONTEXT: _context_points,
        SweepKind.TEMPERATURE: _temperature_points,
        SweepKind.MAX_DRAFT: _draft_points,
    }[request.kind]
    points = make(request.values, setting, reporter)
    if len(points) < 2:
        usual = ", ".join(f"{value:g}" for value in SWEEP_VALUES[request.kind])
        raise UsageError(
            f"--sweep {request.kind}: fewer than two of its usual values ({usual}) are possible with this model, these "
            "prompts and --max-new-tokens. Give --sweep-values."
        )
    return points


def _temperature_points(asked: Sequence[float] | None, setting: BenchSetting, _: Reporter) -> list[Point]:
    workload = setting.workload
    points = []
    for value in asked or SWEEP_VALUES[SweepKind.TEMPERATURE]:
        there = replace(workload, options=replace(workload.options, temperature=value))
        points.append(Point(value, there, there.items(setting.prompts)))
    return points


def _draft_points(asked: Sequence[float] | None, setting: BenchSetting, _: Reporter) -> list[Point]:
    workload = setting.workload
    most = workload.options.max_new_tokens - 2  # the first token comes from the prefill, the last from a verification
    too_long = [value for value in asked or () if value > most]
    if too_long:
        raise UsageError(
            f"--sweep-values {too_long[0]:g}: of {workload.options.max_new_tokens} new tokens at most {most} can be "
            "drafted at once. Give smaller values, or raise --max-new-tokens."
        )
    values = asked or [value for value in SWEEP_VALUES[SweepKind.MAX_DRAFT] if value <= most]
    items = workload.items(setting.prompts)
    return [Point(value, workload, items, _longest_draft(int(value))) for value in values]


def _longest_draft(max_draft_tokens: int) -> Callable[[Draft], Draft]:
    return lambda draft: replace(draft, policy=replace(draft.policy, max_draft_tokens=max_draft_tokens))


def _context_points(asked: Sequence[float] | None, setting: BenchSetting, reporter: Reporter) -> list[Point]:
    workload = setting.workload
    room = workload.loaded.context_length - workload.options.max_new_tokens
    too_long = [value for value in asked or () if value > room]
    if too_long:
        raise UsageError(
            f"--sweep-values {too_long[0]:g}: with {workload.options.max_new_tokens} new tokens that does not fit the "
            f"model's context of {workload.loaded.context_length}; expected at most {room}. Give smaller values, or "
            "lower --max-new-tokens."
        )
    lengths = [len(render(p, workload.loaded.tokenizer, _template(workload))) for p in setting.prompts]
    values = [int(value) for value in asked or _usual_contexts(room, lengths)]
    if not values:
        return []
    prompts = [p for p, length in zip(setting.prompts, lengths, strict=True) if length <= min(values)]
    if not prompts:
        raise PromptError(
            f"--sweep-values {min(values)}: every prompt is longer than that (the shortest has {min(lengths)} tokens). "
            "Raise the smallest value, or give other --prompts."
        )
    if len(prompts) < len(lengths):
        reporter.notice(
            f"{len(lengths) - len(prompts)} of {len(lengths)} prompts have more than {min(values)} tokens; they are "
            "left out at every value"
        )
    return _lengthened_points(workload, prompts, values, reporter, is_asked=asked is not None)


def _usual_contexts(room: int, lengths: Sequence[int]) -> list[float]:
    """The usual values that the model can hold and that most prompts are not longer than."""

    def fits(value: float) -> bool:
        return sum(length <= value for length in lengths) >= _LEAST_FITTING * len(lengths)

    return [value for value in SWEEP_VALUES[SweepKind.CONTEXT] if value <= room and fits(value)]


def _lengthened_points(
    workload: Workload, prompts: Sequence[Prompt], values: Sequence[int], reporter: Reporter, *, is_asked: bool
) -> list[Point]:
    everything = load_prompts(workload.options.source)
    in_order = draw_prompts(everything, len(everything), seed=workload.options.seed)
    source = [prompt for prompt in in_order if may_fit(prompt, workload.loaded.context_length)]
    points = []
    for value in values:
        try:
            items = [_lengthened_item(workload, prompt, source, value) for prompt in prompts]
        except PromptError as error:
            if is_asked:
                raise
            reporter.notice(f"context {value} and longer left out: {error}")
            break
        points.append(Point(value, replace(workload, cost_context=value), items))
    return points


def _lengthened_item(workload: Workload, prompt: Prompt, source: Sequence[Prompt], num_tokens: int) -> WorkItem:
    documents = documents_for(prompt, source)
    tokens = lengthened(prompt, documents, num_tokens, workload.loaded.tokenizer, _template(workload))
    return WorkItem(prompt.id, prompt, tuple(tokens), workload.limits())


def _template(workload: Workload) -> Template:
    return Template(workload.options.template)
