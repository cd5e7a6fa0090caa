"""Which draft steps to time, so that what every part costs can be told from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from selfspec_tune.draft import Draft, DraftPrecision
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sublayer import SubLayerKind
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.timing import Step, has_no_attention
from selfspec_tune.errors import SelfSpecError
from selfspec_tune.plans.cost_class import CostClass

_NUM_RANDOM_SETS = 8
_LEAST_KEPT = 0.25  # of the attentions, and of the MLPs, in a random skip set
_FEWEST_MORE = 2  # skip sets beside the one that skips nothing and the one that skips every MLP


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What to time.

    Attributes:
        context_length: most positions of the model.
        home: tokens of context at which everything is timed; elsewhere a few drafts are.
        lengths: further lengths; one that ``seconds`` do not allow is left out unless ``insist``.
        vocabularies: how many token ids drafts cover; the first one's head is the model's.
        precisions: which to time beside the model's own, where the runner accepts them.
        classes: sub-layers that cost the same; empty: all attentions do, and all MLPs.
        experts: another number of experts than the model's to which a token may go in a draft, fewest of all.
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
    classes: tuple[CostClass, ...] = ()
    experts: int | None = None
    drafts: tuple[Draft, ...] = ()
    others: Mapping[str, Step] = field(default_factory=dict)
    seconds: float = 30.0
    most_rounds: int = 7


def designed_skip_sets(num_layers: int, classes: Sequence[CostClass] = (), seed: int = 0) -> list[SkipSet]:
    """Skip sets whose times tell attention, MLP and head apart: four corners, eight random ones, some for ``classes``.

    The random ones cover the range that matters evenly (a Latin square over the kept shares of
    both kinds). Where a kind has several classes, each is kept alone once. The first of all tell
    attentions from the rest, and from each other.
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
    indices = range(2 * num_layers)
    alone = [SkipSet.from_flags([index not in one.sublayers for index in indices]) for one in _rivals(classes)]
    return list(dict.fromkeys([*corners, *alone, *drawn, *rest]))


def _rivals(classes: Sequence[CostClass], *kinds: SubLayerKind) -> list[CostClass]:
    """The classes of kinds that have several, attentions' first."""
    return [
        one
        for kind in kinds or SubLayerKind
        for one in classes
        if one.kind is kind and sum(other.kind is kind for other in classes) > 1
    ]


def home_drafts(runner: Runner, plan: CostPlan) -> Iterator[Draft]:
    """Every skip set at the first vocabulary, two at others; few at other precisions, all at a mixed one; the rest."""
    sets = designed_skip_sets(runner.num_layers, plan.classes)
    few = sets[: 2 + max(_FEWEST_MORE, len(_rivals(plan.classes)))]
    first, *other_sizes = plan.vocabularies
    yield from (Draft(skip_set, vocabulary=first) for skip_set in sets)
    for size in other_sizes:
        yield from (Draft(skip_set, vocabulary=size) for skip_set in (sets[0], sets[-1]))
    precisions = accepted_precisions(runner, plan.precisions)
    if plan.experts is not None:
        for precision in (DraftPrecision(), *precisions):
            for skip_set in (sets[0], sets[-2]):  # with all attentions, and without any
                yield Draft(skip_set, precision=precision, vocabulary=first, experts=plan.experts)
    for precision in precisions:
        is_mixed = len(set(precision.sublayers)) > 1
        for skip_set in sets if is_mixed else dict.fromkeys([*few, sets[-1]]):
            yield Draft(skip_set, precision=precision, vocabulary=first)
    yield from plan.drafts


def elsewhere(drafts: Sequence[Draft], plan: CostPlan) -> list[Draft]:
    """Those of `home_drafts` that tell what attentions cost at another context, and one that costs the same there."""
    num_attentions = len(_rivals(plan.classes, SubLayerKind.ATTENTION))
    return [*drafts[: 2 + max(_FEWEST_MORE, num_attentions)], next(filter(has_no_attention, drafts))]


def even_draft(runner: Runner, plan: CostPlan, skipped: int = 0) -> Draft:
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
