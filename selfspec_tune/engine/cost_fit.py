"""Measures the cost model from the engine's own steps on this machine.

Every step is timed whole, through the `Runner` interface alone; what one attention, one
MLP and the head cost is fitted by least squares to draft steps with several skip sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import mean, median
from time import perf_counter

import numpy as np
from scipy.optimize import nnls

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.draft.class_costs import ClassCosts
from selfspec_tune.draft.costs import ContextCosts, CostModel, StepCosts
from selfspec_tune.draft.sublayer import SubLayerKind
from selfspec_tune.engine.cost_design import CostPlan, elsewhere, even_draft, home_drafts
from selfspec_tune.engine.runner import Runner, prefill
from selfspec_tune.engine.timing import (
    Clock,
    ContextSteps,
    ContextTimings,
    TimedDraft,
    TimingRounds,
    at_one_speed,
    decode_step,
    in_round_of,
    steps_in_round,
    time_steps,
    verify_step,
)
from selfspec_tune.plans.cost_class import CostClass, classes_by_kind

# A part of a draft step: ("head", precision, token ids), (an attention's class, precision, positions that it reads),
# (another class, precision, 0), and what it adds for each expert.
_Part = tuple[str, Precision, int]
_EACH_EXPERT = -1
CONTEXTS = (128, 512, 2048, 8192)
MOST_DRAFTED = 24
_QUICK_SECONDS = 2.0
_QUICK_DRAFTED = (0, 1, 2, 3, 4, 6, 8, 12, 16, MOST_DRAFTED)


def fit_costs(
    timings: Sequence[TimedDraft],
    verify: Mapping[int, tuple[float, ...]],
    *,
    home: int,
    vocabulary: int,
    full_vocabulary: int,
    num_layers: int,
    classes: Sequence[CostClass] = (),
) -> CostModel:
    """The cost model that explains ``timings`` best; no part costs less than nothing.

    Errors count relative to the step's time, as timing noise does. ``verify`` holds the
    times of passes over 1, 2, … tokens by context length; attentions cost something else
    for each number of positions that they read, all else is shared. ``classes``: sub-layers that cost the same, by
    default each kind's.
    """
    parts_of = _Parts(timings, classes or classes_by_kind(num_layers), full_vocabulary)
    rows = [parts_of(timing) for timing in timings]
    parts = sorted({part for row in rows for part in row})
    seconds = np.array([median(timing.seconds) for timing in timings])
    matrix = np.array([[row[part] for part in parts] for row in rows]) / seconds[:, None]
    solution, _ = nnls(matrix, np.ones(len(rows)))
    costs = dict(zip(parts, map(float, solution), strict=True))
    others = {one: _class_costs(one, costs, home, sorted(verify)) for one in parts_of.classes}
    attention, mlp = (parts_of.typical(kind) for kind in SubLayerKind)
    return CostModel(
        verify=verify[home],
        heads=_of(costs, "head", vocabulary),
        attention=others[attention].seconds,
        mlp=others[mlp].seconds,
        num_layers=num_layers,
        contexts=tuple(
            ContextCosts(length, verify[length], costs[attention.name, Precision.SAME, attention.reach.seen(length)])
            for length in sorted(verify)
        ),
        length=home,
        vocabularies={
            size: value for (kind, precision, size), value in costs.items() if (kind, precision) == ("head", "same")
        },
        vocabulary=vocabulary,
        residual=float(np.sqrt(np.mean((matrix @ solution - 1.0) ** 2))),
        others=tuple(found for one, found in others.items() if not (one.is_plain and one in (attention, mlp))),
    )


class _Parts:
    """Counts how often each part occurs in a step."""

    def __init__(self, timings: Sequence[TimedDraft], classes: Sequence[CostClass], full_vocabulary: int) -> None:
        self.classes = classes
        self._class_of = {index: one for one in classes for index in one.sublayers}
        self._full_vocabulary = full_vocabulary
        numbers: dict[tuple[str, Precision], set[int]] = {}
        for timing in timings:
            for one, precision in self._kept(timing.draft):
                numbers.setdefault((one.name, precision), set()).add(_experts(one, timing.draft))
        self._told_experts = {key for key, found in numbers.items() if len(found) > 1}

    def __call__(self, timing: TimedDraft) -> Counter[_Part]:
        draft = timing.draft
        parts: Counter[_Part] = Counter()
        parts["head", draft.precision.head, draft.vocabulary or self._full_vocabulary] = 1
        for one, precision in self._kept(draft):
            place = one.reach.seen(timing.length) if one.kind is SubLayerKind.ATTENTION else 0
            parts[one.name, precision, place] += 1
            if (one.name, precision) in self._told_experts:
                parts[one.name, precision, _EACH_EXPERT] += _experts(one, draft)
        return parts

    def typical(self, kind: SubLayerKind) -> CostClass:
        """The first plain class of a kind, else its first one."""
        those = [one for one in self.classes if one.kind is kind]
        return next((one for one in those if one.is_plain), those[0])

    def _kept(self, draft: Draft) -> Iterator[tuple[CostClass, Precision]]:
        for sublayer, precision in draft.kept():
            yield self._class_of[sublayer.index], precision


def _experts(one: CostClass, draft: Draft) -> int:
    return min(draft.experts or one.experts, one.experts)


def _class_costs(one: CostClass, costs: Mapping[_Part, float], home: int, lengths: Sequence[int]) -> ClassCosts:
    is_attention = one.kind is SubLayerKind.ATTENTION
    seen = one.reach.seen(home) if is_attention else 0
    each = _of(costs, one.name, _EACH_EXPERT)
    read = sorted({one.reach.seen(length) for length in lengths}) if is_attention else ()
    seconds = _of(costs, one.name, seen)
    return ClassCosts(
        one.name,
        one.sublayers,
        {precision: value + one.experts * each.get(precision, 0.0) for precision, value in seconds.items()},
        seen,
        one.reach.most_seen,
        tuple((positions, costs[one.name, Precision.SAME, positions]) for positions in read),
        one.experts,
        each,
    )


def _of(costs: Mapping[_Part, float], kind: str, place: int) -> dict[Precision, float]:
    return {precision: seconds for (name, precision, where), seconds in costs.items() if (name, where) == (kind, place)}


def measure_costs(runner: Runner, context: Sequence[int], plan: CostPlan, clock: Clock = perf_counter) -> CostModel:
    """The cost model by ``plan``; ``context`` is repeated to the lengths needed. Overwrites the cache and the draft."""
    return fitted(runner, time_contexts(runner, context, plan, clock), plan)


def fitted(runner: Runner, timings: Sequence[ContextTimings], plan: CostPlan) -> CostModel:
    """The cost model of ``timings``, the first of which is the home context's."""
    timings = at_one_speed(timings)
    verify = {
        timing.length: _between(list(timing.verify), [median(seconds) for seconds in timing.verify.values()])
        for timing in timings
    }
    drafts = [draft for timing in timings for draft in timing.drafts]
    costs = fit_costs(
        drafts,
        verify,
        home=timings[0].length,
        vocabulary=plan.vocabularies[0] or runner.vocabulary_size,
        full_vocabulary=runner.vocabulary_size,
        num_layers=runner.num_layers,
        classes=plan.classes,
    )
    in_rounds = timings[0].in_rounds
    return replace(costs, cold=mean(one.cold for one in in_rounds), guess=mean(one.guess for one in in_rounds))


def time_contexts(
    runner: Runner, context: Sequence[int], plan: CostPlan, clock: Clock = perf_counter
) -> list[ContextTimings]:
    """Time all steps at the home context, then the others in rising order while there is time."""
    begun = clock()
    widest = max(0, min(MOST_DRAFTED, plan.context_length - 3))
    roomy = max(1, plan.context_length - widest - 2)
    home, rate = min(plan.home, roomy), 0.0
    lengths = sorted({min(length, roomy) for length in plan.lengths} - {home})
    drafts = list(home_drafts(runner, plan))
    whole, half = even_draft(runner, plan), even_draft(runner, plan, skipped=runner.num_layers // 2)
    timings: list[ContextTimings] = []
    for number, length in enumerate((home, *lengths)):
        left = plan.seconds - (clock() - begun)
        if timings and not plan.insist and length * rate > left:
            break
        prefilled = fill_cache(runner, context, length, widest + 2, clock)
        rate = max(rate, prefilled / length)
        share = (left - prefilled) / (len(lengths) + 1 - number)
        rounds = TimingRounds(most=plan.most_rounds, seconds=share)
        timed = drafts if number == 0 else elsewhere(drafts, plan)
        in_rounds = (whole, half) if number == 0 else ()
        steps = ContextSteps(runner, context, timed, whole, in_rounds, widest, plan.others)
        timings.append(steps.time(rounds, clock))
    return timings


def measure_step_costs(
    runner: Runner,
    context: Sequence[int],
    draft: Draft,
    known: StepCosts | None = None,
    *,
    context_length: int | None = None,
    repeats: int = 3,
    clock: Clock = perf_counter,
) -> StepCosts:
    """Decode, draft step and verification of up to 24 tokens after ``context``, quickly.

    Interleaved, medians of ``repeats`` or, where steps are short, up to five times as many;
    verifications between the few that are timed lie on a line. A draft step is 0 where
    the model does not draft. Of another draft's costs, ``known``, those of the full model are kept,
    and only the draft step is timed, beside a plain one. ``context_length``, the model's, cuts
    the context where it leaves no room for the steps.
    Overwrites the cache and the draft.
    """
    if known is not None and not draft.model_drafts:
        return replace(known, draft=0.0, cold=0.0, guess=0.0)
    room = context_length or len(context) + MOST_DRAFTED + 2
    widest = max(0, min(MOST_DRAFTED, room - 3))
    length = min(len(context), max(1, room - widest - 2))
    fill_cache(runner, context, length, widest + 2, clock)
    drafted = sorted({widest, *(k for k in _QUICK_DRAFTED if k < widest)}) if known is None else [0]
    after = draft if draft.model_drafts else None
    steps = {f"verify({k})": verify_step(runner, context, k, after) for k in drafted if k > 0}
    steps["verify(0)"] = decode_step(runner, context)
    if after is not None:
        steps |= steps_in_round(runner, context, draft, widest)
    seconds = time_steps(runner, steps, TimingRounds(repeats, 5 * repeats, _QUICK_SECONDS), clock)
    typical = {name: median(values) for name, values in seconds.items()}
    costs = known or StepCosts(typical["verify(0)"], 0.0, _between(drafted, [typical[f"verify({k})"] for k in drafted]))
    if after is None:
        return costs
    in_round = in_round_of(seconds, widest)
    speed = costs.decode / typical["verify(0)"]  # the machine's when the known ones were timed, in today's
    step = speed * median(in_round.amid)
    return replace(costs, draft=step, cold=speed * in_round.cold, guess=in_round.guess * step)


def _between(places: Sequence[int], values: Sequence[float]) -> tuple[float, ...]:
    """Values at 0, 1, … last place, on lines between those known."""
    known = dict(zip(places, values, strict=True))
    filled = []
    for place in range(places[-1] + 1):
        low = max(known_place for known_place in places if known_place <= place)
        high = min(known_place for known_place in places if known_place >= place)
        part = (place - low) / max(high - low, 1)
        filled.append(known[low] + part * (known[high] - known[low]))
    return tuple(filled)


def fill_cache(runner: Runner, context: Sequence[int], length: int, room: int, clock: Clock) -> float:
    """Put ``length`` tokens into the cache with ``room`` after them; seconds that it took."""
    repeated = list(context) * (length // len(context) + 1)
    runner.reserve(length + room)
    runner.synchronize()
    begun = clock()
    prefill(runner, repeated[:length])
    runner.synchronize()
    return clock() - begun
