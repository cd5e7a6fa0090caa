"""Measures the cost model from the engine's own steps on this machine.

Every step is timed whole, through the `Runner` interface alone; what one attention, one
MLP and the head cost is fitted by least squares to draft steps with several skip sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import mean, median
from time import perf_counter

import numpy as np
from scipy.optimize import nnls

from selfspec_tune.draft import Draft, DraftPrecision, Precision
from selfspec_tune.draft.costs import ContextCosts, CostModel, StepCosts
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine.runner import Runner, prefill
from selfspec_tune.engine.timing import (
    Clock,
    ContextSteps,
    ContextTimings,
    Step,
    TimedDraft,
    TimingRounds,
    at_one_speed,
    decode_step,
    has_no_attention,
    in_round_of,
    steps_in_round,
    time_steps,
    verify_step,
)
from selfspec_tune.errors import SelfSpecError

# A part of a draft step: ("head", precision, token ids), ("attention", precision, context), ("mlp", precision, 0).
_Part = tuple[str, Precision, int]
CONTEXTS = (128, 512, 2048, 8192)
MOST_DRAFTED = 16
_NUM_RANDOM_SETS = 8
_LEAST_KEPT = 0.25  # of the attentions, and of the MLPs, in a random skip set
_NUM_ELSEWHERE = 4  # skip sets timed at other contexts than the first, beside the one without attention
_QUICK_SECONDS = 2.0
_QUICK_DRAFTED = (0, 1, 2, 3, 4, 6, 8, 12, MOST_DRAFTED)


def fit_costs(
    timings: Sequence[TimedDraft],
    verify: Mapping[int, tuple[float, ...]],
    *,
    home: int,
    vocabulary: int,
    full_vocabulary: int,
    num_layers: int,
) -> CostModel:
    """The cost model that explains ``timings`` best; no part costs less than nothing.

    Errors count relative to the step's time, as timing noise does. ``verify`` holds the
    times of passes over 1, 2, … tokens by context length; attentions cost something else
    at each length, all else is shared.
    """
    rows = [_parts(timing, full_vocabulary) for timing in timings]
    parts = sorted({part for row in rows for part in row})
    seconds = np.array([median(timing.seconds) for timing in timings])
    matrix = np.array([[row[part] for part in parts] for row in rows]) / seconds[:, None]
    solution, _ = nnls(matrix, np.ones(len(rows)))
    costs = dict(zip(parts, map(float, solution), strict=True))
    return CostModel(
        verify=verify[home],
        heads=_of(costs, "head", vocabulary),
        attention=_of(costs, "attention", home),
        mlp=_of(costs, "mlp", 0),
        num_layers=num_layers,
        contexts=tuple(
            ContextCosts(length, verify[length], costs["attention", Precision.SAME, length])
            for length in sorted(verify)
        ),
        length=home,
        vocabularies={
            size: value for (kind, precision, size), value in costs.items() if (kind, precision) == ("head", "same")
        },
        vocabulary=vocabulary,
        residual=float(np.sqrt(np.mean((matrix @ solution - 1.0) ** 2))),
    )


def _parts(timing: TimedDraft, full_vocabulary: int) -> Counter[_Part]:
    """How often each part occurs in a step."""
    draft = timing.draft
    parts: Counter[_Part] = Counter()
    parts["head", draft.precision.head, draft.vocabulary or full_vocabulary] = 1
    for sublayer, precision in draft.kept():
        parts[sublayer.kind.value, precision, timing.length if sublayer.is_attention else 0] += 1
    return parts


def _of(costs: Mapping[_Part, float], kind: str, place: int) -> dict[Precision, float]:
    return {precision: seconds for (name, precision, where), seconds in costs.items() if (name, where) == (kind, place)}


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What to time.

    Attributes:
        context_length: most positions of the model.
        home: tokens of context at which everything is timed; elsewhere a few drafts are.
        lengths: further lengths; one that ``seconds`` do not allow is left out unless ``insist``.
        vocabularies: how many token ids drafts cover; the first one's head is the model's.
        precisions: which to time beside the model's own, where the runner accepts them.
        drafts: further drafts to time at home, for what these leave untold.
        others: further steps to interleave with these, at every context.
        seconds: time for all of it, prefills included.
    """

    context_length: int
    home: int
    lengths: tuple[int, ...] = ()
    insist: bool = False
    vocabularies: tuple[int | None, ...] = (None,)
    precisions: tuple[DraftPrecision, ...] = ()
    drafts: tuple[Draft, ...] = ()
    others: Mapping[str, Step] = field(default_factory=dict)
    seconds: float = 30.0
    most_rounds: int = 7


def measure_costs(runner: Runner, context: Sequence[int], plan: CostPlan, clock: Clock = perf_counter) -> CostModel:
    """The cost model by ``plan``; ``context`` is repeated to the lengths needed. Overwrites the cache and the draft."""
    return fitted(runner, time_contexts(runner, context, plan, clock), plan)


def fitted(runner: Runner, timings: Sequence[ContextTimings], plan: CostPlan) -> CostModel:
    """The cost model of ``timings``, the first of which is the home context's."""
    timings = at_one_speed(timings)
    verify = {timing.length: tuple(median(seconds) for seconds in timing.verify) for timing in timings}
    drafts = [draft for timing in timings for draft in timing.drafts]
    costs = fit_costs(
        drafts,
        verify,
        home=timings[0].length,
        vocabulary=plan.vocabularies[0] or runner.vocabulary_size,
        full_vocabulary=runner.vocabulary_size,
        num_layers=runner.num_layers,
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
    drafts = list(_home_drafts(runner, plan))
    whole, half = _even_draft(runner, plan), _even_draft(runner, plan, skipped=runner.num_layers // 2)
    timings: list[ContextTimings] = []
    for number, length in enumerate((home, *lengths)):
        left = plan.seconds - (clock() - begun)
        if timings and not plan.insist and length * rate > left:
            break
        prefilled = fill_cache(runner, context, length, widest + 2, clock)
        rate = max(rate, prefilled / length)
        share = (left - prefilled) / (len(lengths) + 1 - number)
        rounds = TimingRounds(most=plan.most_rounds, seconds=share)
        timed = drafts if number == 0 else [*drafts[:_NUM_ELSEWHERE], next(filter(has_no_attention, drafts))]
        in_rounds = (whole, half) if number == 0 else ()
        steps = ContextSteps(runner, context[-1], timed, whole, in_rounds, widest, plan.others)
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
    """Decode, draft step and verification of up to 16 tokens after ``context``, quickly.

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
    token, after = context[-1], draft if draft.model_drafts else None
    steps = {f"verify({k})": verify_step(runner, token, k, after) for k in drafted if k > 0}
    steps["verify(0)"] = decode_step(runner, token)
    if after is not None:
        steps |= steps_in_round(runner, token, draft, widest)
    seconds = time_steps(runner, steps, TimingRounds(repeats, 5 * repeats, _QUICK_SECONDS), clock)
    typical = {name: median(values) for name, values in seconds.items()}
    costs = known or StepCosts(typical["verify(0)"], 0.0, _between(drafted, [typical[f"verify({k})"] for k in drafted]))
    if after is None:
        return costs
    in_round = in_round_of(seconds, widest)
    speed = costs.decode / typical["verify(0)"]  # the machine's when the known ones were timed, in today's
    step = speed * median(in_round.amid)
    return replace(costs, draft=step, cold=speed * in_round.cold, guess=in_round.guess * step)


def designed_skip_sets(num_layers: int, seed: int = 0) -> list[SkipSet]:
    """Skip sets whose times tell attention, MLP and head apart: the four corners and eight random ones.

    The random ones cover the range that matters evenly (a Latin square over the kept shares of
    both kinds). The first four are enough to tell an attention from the rest.
    """
    generator = Random(seed)
    layers = tuple(range(num_layers))
    shares = [_LEAST_KEPT + (1 - _LEAST_KEPT) * (i + 0.5) / _NUM_RANDOM_SETS for i in range(_NUM_RANDOM_SETS)]
    kept = [(shares[i], shares[place]) for i, place in enumerate(generator.sample(range(len(shares)), len(shares)))]
    drawn = [
        SkipSet.random(
            num_layers, num_layers - round(attention * num_layers), num_layers - round(mlp * num_layers), seed=number
        )
        for number, (attention, mlp) in enumerate(kept)
    ]
    corners = [SkipSet.empty(num_layers), SkipSet(num_layers, (), layers)]
    rest = [SkipSet(num_layers, layers, ()), SkipSet(num_layers, layers, layers)]
    return list(dict.fromkeys([*corners, *drawn, *rest]))


def _home_drafts(runner: Runner, plan: CostPlan) -> Iterator[Draft]:
    """Every skip set at the first vocabulary; two at others; five at other precisions, all at a mixed one; the rest."""
    sets = designed_skip_sets(runner.num_layers)
    first, *other_sizes = plan.vocabularies
    yield from (Draft(skip_set, vocabulary=first) for skip_set in sets)
    for size in other_sizes:
        yield from (Draft(skip_set, vocabulary=size) for skip_set in (sets[0], sets[-1]))
    for precision in accepted_precisions(runner, plan.precisions):
        is_mixed = len(set(precision.sublayers)) > 1
        for skip_set in sets if is_mixed else dict.fromkeys([*sets[:4], sets[-1]]):
            yield Draft(skip_set, precision=precision, vocabulary=first)
    yield from plan.drafts


def _even_draft(runner: Runner, plan: CostPlan, skipped: int = 0) -> Draft:
    """A draft at the first of the plan's precisions that skips so many attentions and MLPs, by default none."""
    low = accepted_precisions(runner, plan.precisions)
    skip_set = SkipSet.uniform(runner.num_layers, skipped, skipped)
    return Draft(skip_set, precision=low[0] if low else DraftPrecision(), vocabulary=plan.vocabularies[0])


def accepted_precisions(runner: Runner, precisions: Sequence[DraftPrecision]) -> list[DraftPrecision]:
    """Those of ``precisions`` that the runner can draft at."""
    return [precision for precision in precisions if _accepts(runner, precision)]


def _accepts(runner: Runner, precision: DraftPrecision) -> bool:
    try:
        runner.set_draft(Draft(SkipSet.empty(runner.num_layers), precision=precision))
    except (SelfSpecError, NotImplementedError, ValueError):
        return False
    return True


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
