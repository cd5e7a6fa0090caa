"""How much each sub-layer matters beside others that are left out, and to the base draft at a higher precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from statistics import fmean
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selfspec_tune.checks import numbers
from selfspec_tune.draft import Precision
from selfspec_tune.draft.costs import CostModel
from selfspec_tune.draft.sublayer import SubLayerId
from selfspec_tune.engine.teacher_forcing import DraftScorer
from selfspec_tune.search.space import SearchSpace

FEWEST_SAMPLES = 16
_LEAST_SKIPPED, _MOST_SKIPPED = 0.12, 0.33  # of the skippable sub-layers, in a sample
_NLL_FLOOR = 0.02  # nats: what a draft loses below it is noise of the text
_RIDGE = 2.0
_MOST = 1e9  # that a value of a file may be
_RISE_FLOOR = 0.01  # a sub-layer that seems to cost nothing to skip is only so much better than those that cost this


@dataclass(frozen=True, slots=True)
class Importance:
    """What changes of a sub-layer do (2i: attention, 2i + 1: MLP of layer i).

    ``rises``: by how much skipping it raises the logarithm of what a draft's NLL is above the base's, in
    the mean over drafts without some of the others. ``reliefs``: nats that the NLL falls by when it alone drafts at
    the model's own precision; 0 where it does so in the base.
    """

    rises: tuple[float, ...]
    reliefs: tuple[float, ...]

    @classmethod
    def unknown(cls, num_sublayers: int) -> Importance:
        """Where nothing was measured: all sub-layers alike."""
        return cls((0.0,) * num_sublayers, (0.0,) * num_sublayers)

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return any(self.rises)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"rises": list(self.rises), "reliefs": list(self.reliefs)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Importance:
        """The inverse of `to_dict`. Raises KeyError, TypeError or `UsageError` for another value."""
        return cls(*(numbers(name, value[name], -_MOST) for name in ("rises", "reliefs")))


def measure_importance(
    scorer: DraftScorer,
    space: SearchSpace,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda _: None,
    seconds: float = inf,
    clock: Callable[[], float] = monotonic,
) -> Importance:
    """Score drafts without random sub-layers and regress on who is left out; then raise each precision alone.

    Fewer drafts where ``seconds`` run out, but 16; a sub-layer that none told of counts like those that some did.

    Left out alone, a sub-layer of a deep model changes so little that the order is noise, and what it does beside
    others is another thing. Harms multiply rather than add up, hence the logarithm. ``on_step`` gets the number of
    the pass.
    """
    base, begun = space.base, clock()
    whole = scorer.trace(base).nll
    num = len(base.sublayers)
    samples = list(_samples(space, seed))
    losses: list[float] = []
    for step, sample in enumerate(samples):
        if step >= FEWEST_SAMPLES and clock() - begun > seconds:
            break
        on_step(step)
        losses.append(scorer.trace(space.skipping(sample)).nll - whole)
    raisable = _raisable(space)
    told: dict[int, float] = {}
    # In a random order, so that running out of time favours no part of the model.
    for step, index in enumerate(Random(seed).sample(raisable, len(raisable)), len(samples)):
        if clock() - begun > seconds:
            break
        on_step(step)
        told[index] = whole - scorer.trace(base.with_sublayer(index, Precision.SAME)).nll
    usual = fmean(told.values()) if told else 0.0
    reliefs = [0.0] * num
    for index in raisable:
        reliefs[index] = told.get(index, usual)
    return Importance(_regress(samples[: len(losses)], losses, space), tuple(reliefs))


def num_steps(space: SearchSpace) -> int:
    """How many passes `measure_importance` takes beside the base's."""
    return _num_samples(space) + len(_raisable(space))


def by_worth(importance: Importance, space: SearchSpace, costs: CostModel) -> list[int]:
    """Skippable sub-layers, first those that save most time for what skipping them harms."""

    def price(index: int) -> float:
        seconds = costs.of_sublayer(SubLayerId.of(index), space.base.precision.of(index))
        return (max(importance.rises[index], 0.0) + _RISE_FLOOR) / max(seconds, 1e-12)

    return sorted(space.skippable, key=price)


def _num_samples(space: SearchSpace) -> int:
    return max(2 * space.num_layers, FEWEST_SAMPLES)


def _samples(space: SearchSpace, seed: int) -> Iterable[frozenset[int]]:
    """Sets of sub-layers to leave out, of several sizes; every one comes about as often as any other."""
    generator = Random(seed)
    deck: list[int] = []
    shares = [_LEAST_SKIPPED + (_MOST_SKIPPED - _LEAST_SKIPPED) * step / 3 for step in range(4)]
    for number in range(_num_samples(space)):
        size = max(1, round(shares[number % 4] * len(space.skippable)))
        chosen: set[int] = set()
        while len(chosen) < size:
            if not deck:
                deck = generator.sample(list(space.skippable), len(space.skippable))
            chosen.add(deck.pop())
        yield frozenset(chosen)


def _regress(samples: Sequence[frozenset[int]], losses: Sequence[float], space: SearchSpace) -> tuple[float, ...]:
    """A ridge regression of the losses' logarithms on who was left out; for what is never skipped, the greatest."""
    columns = list(space.skippable)
    left_out: NDArray[np.float64] = np.array(
        [[index in sample for index in columns] for sample in samples], dtype=float
    )
    harm = np.log(np.maximum(np.array(losses), 0.0) + _NLL_FLOOR)
    left_out -= left_out.mean(0)
    matrix = left_out.T @ left_out + _RIDGE * np.eye(len(columns))
    effects = np.linalg.solve(matrix, left_out.T @ (harm - harm.mean()))
    rises = [float(effects.max())] * (2 * space.num_layers)
    for index, effect in zip(columns, effects, strict=True):
        rises[index] = float(effect)
    return tuple(rises)


def _raisable(space: SearchSpace) -> list[int]:
    own = [space.base.precision.of(index) for index in range(2 * space.num_layers)]
    return [i for i, p in enumerate(own) if p is not Precision.SAME and Precision.SAME in space.sublayers[i]]
