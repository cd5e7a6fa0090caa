"""How much each sub-layer matters to the base draft: to leave it out, or to compute it more precisely."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from selfspec_tune.draft import Draft, Precision
from selfspec_tune.engine.teacher_forcing import DraftScorer
from selfspec_tune.search.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Importance:
    """Changes of the NLL in nats (2i: attention, 2i + 1: MLP of layer i).

    ``rises``: when the sub-layer alone is skipped. ``reliefs``: what the NLL falls by when it
    alone drafts at the model's own precision; 0 where it does so in the base.
    """

    rises: tuple[float, ...]
    reliefs: tuple[float, ...]

    @classmethod
    def unknown(cls, num_sublayers: int) -> Importance:
        """Where nothing was measured: all sub-layers alike."""
        return cls((0.0,) * num_sublayers, (0.0,) * num_sublayers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"rises": list(self.rises), "reliefs": list(self.reliefs)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Importance:
        """The inverse of `to_dict`."""
        return cls(tuple(value["rises"]), tuple(value["reliefs"]))


def measure_importance(
    scorer: DraftScorer, space: SearchSpace, on_step: Callable[[int], None] = lambda _: None
) -> Importance:
    """Score the base with one sub-layer changed at a time; ``on_step`` gets the number of the change."""
    base = space.base
    whole = scorer.trace(base).nll
    num = len(base.sublayers)
    raisable = [i for i in range(num) if _may_be_raised(space, i)]

    def change(drafts: Iterable[tuple[int, Draft]], first: int) -> dict[int, float]:
        changes = {}
        for step, (index, draft) in enumerate(drafts, first):
            on_step(step)
            changes[index] = scorer.trace(draft).nll - whole
        return changes

    rises = change(((i, base.with_sublayer(i, None)) for i in range(num)), 0)
    falls = change(((i, base.with_sublayer(i, Precision.SAME)) for i in raisable), num)
    return Importance(tuple(rises[i] for i in range(num)), tuple(-falls.get(i, 0.0) for i in range(num)))


def num_steps(space: SearchSpace) -> int:
    """How many changes `measure_importance` scores."""
    num = 2 * space.num_layers
    return num + sum(_may_be_raised(space, i) for i in range(num))


def by_importance(rises: Sequence[float], space: SearchSpace) -> list[int]:
    """Skippable sub-layers, the least important first."""
    return sorted(space.skippable, key=lambda index: rises[index])


def _may_be_raised(space: SearchSpace, index: int) -> bool:
    own = space.base.precision.of(index)
    return own is not Precision.SAME and Precision.SAME in space.sublayers[index]
