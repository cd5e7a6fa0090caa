"""Ways to search, side by side: our own in stages, Optuna's samplers on their own, and those of other projects.

All end alike: their best drafts compete on the selection prompts, the winner is measured on
the test prompts. They differ in where candidates come from and in how a trial is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.util import find_spec
from random import Random
from typing import Any

from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler

from selfspec_tune.draft import Draft, PolicyKind
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import DraftOptions, Objective, PolicyChoice, StrategyName
from selfspec_tune.search.space import SearchSpace

_UNIFORM_STEPS = 12
_SWIFT_SHARE = 0.45  # of all sub-layers: SWIFT's skip ratio
_SWIFT_TURN = 25  # every so many trials are Bayesian, the others random


class ScoredBy(StrEnum):
    """What a trial measures: pairs with plain decoding, its own time alone, or matches without decoding."""

    PAIRS = "pairs"
    TIME = "time"
    MATCHES = "matches"


def _nothing(space: SearchSpace, seed: int) -> Iterator[Draft]:
    return iter(())


@dataclass(frozen=True, slots=True)
class Strategy:
    """Where a search's trials come from.

    Attributes:
        about: the strategy in a line.
        sampler: makes Optuna's sampler from a seed.
        library: what the sampler imports beyond our own requirements; it is in the extra ``search``.
        has_proxy: whether candidates are predicted first, and enqueued.
        as_reals: whether choices are coded as numbers from 0 to 1.
        scored_by: what a trial measures.
        starts: drafts to try before the sampler's own, without the proxy.
        turn: of so many trials the sampler proposes one, however many starts there are.
        options: what it searches with instead of the request's own.
    """

    about: str
    sampler: Callable[[int], BaseSampler]
    library: str | None = None
    has_proxy: bool = False
    as_reals: bool = False
    scored_by: ScoredBy = ScoredBy.PAIRS
    starts: Callable[[SearchSpace, int], Iterator[Draft]] = _nothing
    turn: int | None = None
    options: Callable[[DraftOptions], DraftOptions] = lambda options: options


def _uniform(space: SearchSpace, seed: int) -> Iterator[Draft]:
    """Evenly spaced layers, from a twelfth of them to all but the first and the last."""
    num_layers = space.num_layers
    for step in range(1, _UNIFORM_STEPS + 1):
        count = round(step / _UNIFORM_STEPS * (num_layers - 2))
        for attention, mlp in ((count, count), (count, 0), (0, count)):
            if count:
                yield space.skipping(SkipSet.uniform(num_layers, attention, mlp).indices)


def _of_swifts_size(space: SearchSpace, seed: int) -> Iterator[Draft]:
    """Endless random drafts without 45 % of the sub-layers."""
    generator = Random(seed)
    count = round(_SWIFT_SHARE * 2 * space.num_layers)
    while True:
        yield space.skipping(frozenset(generator.sample(list(space.skippable), count)))


def _as_published(**fields: Any) -> Callable[[DraftOptions], DraftOptions]:
    """Skips alone, with the project's own draft policy, over the whole vocabulary."""
    alone: dict[str, Any] = {"vocabulary": "full", "precision": "same", **fields}
    return lambda options: replace(options.without_sources(), **alone)


def _by_rule(options: DraftOptions) -> DraftOptions:
    """A threshold where any policy may be searched: a cost-aware one, of a draft unknown to it, drafts nothing."""
    is_open = options.policy == PolicyChoice.AUTO and options.objective is Objective.SHARED
    return replace(options, policy=PolicyKind.THRESHOLD.value) if is_open else options


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=0)


STRATEGIES: dict[StrategyName, Strategy] = {
    StrategyName.STAGED: Strategy(
        "importance, candidates by proxy, then trials (TPE) from the best and most diverse",
        _tpe,
        has_proxy=True,
    ),
    StrategyName.TPE: Strategy("Optuna's TPE from nothing", lambda seed: TPESampler(seed=seed), options=_by_rule),
    StrategyName.GP: Strategy("a Gaussian process from nothing", lambda seed: GPSampler(seed=seed), options=_by_rule),
    StrategyName.CMAES: Strategy(
        "CMA-ES over numbers from 0 to 1",
        lambda seed: CmaEsSampler(seed=seed),
        library="cmaes",
        as_reals=True,
        options=_by_rule,
    ),
    StrategyName.RANDOM: Strategy("random drafts", lambda seed: RandomSampler(seed=seed), options=_by_rule),
    StrategyName.UNIFORM: Strategy(
        "evenly spaced layers", lambda seed: RandomSampler(seed=seed), starts=_uniform, options=_by_rule
    ),
    StrategyName.SELF_SD: Strategy(
        "Draft & Verify's own: a Gaussian process over 2 L numbers, skipped above a half; scored by tokens a second",
        lambda seed: GPSampler(seed=seed),
        as_reals=True,
        scored_by=ScoredBy.TIME,
        options=_as_published(policy=PolicyKind.ADAPTIVE.value, max_draft_tokens=12, exit_threshold=0.6),
    ),
    StrategyName.SWIFT: Strategy(
        "SWIFT's own: random sets of a fixed size, every 25th Bayesian; scored by matches with the model's text",
        lambda seed: GPSampler(seed=seed),
        as_reals=True,
        scored_by=ScoredBy.MATCHES,
        starts=_of_swifts_size,
        turn=_SWIFT_TURN,
        options=_as_published(policy=PolicyKind.THRESHOLD.value, max_draft_tokens=25, exit_threshold=0.8),
    ),
}


def strategy_for(name: StrategyName) -> Strategy:
    """The strategy called ``name``. Raises `UsageError` where its library is not installed."""
    strategy = STRATEGIES[name]
    if strategy.library is not None and find_spec(strategy.library) is None:
        raise UsageError(
            f"`strategy` {name} needs {strategy.library}, which is not installed: pip install "
            "'selfspec-tune[search]', or choose another strategy."
        )
    return strategy
