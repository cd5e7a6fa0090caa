"""What sub-layers cost that are unlike the others of their kind: in a window, in chunks, or mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from selfspec_tune.checks import number, shown, whole
from selfspec_tune.draft.precision import Precision
from selfspec_tune.draft.skip_set import MOST_LAYERS
from selfspec_tune.errors import UsageError

MOST_TOKENS = 100_000_000  # of a context that a file may state
MOST_SECONDS = 1e6  # of a step
_MOST_EXPERTS = 1_000_000
_MOST_NAME = 100


@dataclass(frozen=True, slots=True)
class ClassCosts:
    """Sub-layers of one class in a draft step, after the context that the model of costs is for.

    Attributes:
        name: in words.
        sublayers: their indices.
        seconds: one of them, by precision.
        seen: positions of the cache that an attention reads in that context, and ``most_seen`` at most; None: all.
        by_seen: (positions that it reads, seconds) of one at full precision, rising; empty where it reads none.
        experts: how many of them a token goes to; 0: they are no experts.
        each_expert: what one expert more or less adds to ``seconds`` or takes off; empty where that was not measured.
    """

    name: str
    sublayers: tuple[int, ...]
    seconds: Mapping[Precision, float]
    seen: int = 0
    most_seen: int | None = None
    by_seen: tuple[tuple[int, float], ...] = ()
    experts: int = 0
    each_expert: Mapping[Precision, float] = field(default_factory=dict)

    def step(self, precision: Precision, context: float | None = None, experts: int | None = None) -> float:
        """Seconds of one after ``context`` positions (default: that of ``seconds``) with so many experts a token.

        Raises ValueError for a precision, or a number of experts, of which nothing was measured.
        """
        seconds = cost_of(self.seconds, precision)
        if experts is not None and experts < self.experts:  # more than in the model they are never
            seconds += (experts - self.experts) * cost_of(self.each_expert, precision)
        if context is not None and self.by_seen:
            seconds += self._reading(context if self.most_seen is None else min(context, self.most_seen))
            seconds -= self._reading(self.seen)
        return max(seconds, 0.0)

    def _reading(self, positions: float) -> float:
        places, seconds = zip(*self.by_seen, strict=True)
        return on_line(places, seconds, positions)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        value: dict[str, Any] = {"name": self.name, "sublayers": list(self.sublayers)}
        value["seconds"] = {precision.value: seconds for precision, seconds in self.seconds.items()}
        if self.by_seen:
            value["seen"], value["by_seen"] = self.seen, [list(entry) for entry in self.by_seen]
        if self.most_seen is not None:
            value["most_seen"] = self.most_seen
        if self.experts:
            value["experts"] = self.experts
            value["each_expert"] = {precision.value: seconds for precision, seconds in self.each_expert.items()}
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ClassCosts:
        """The inverse of `to_dict`. Raises KeyError, TypeError, ValueError or `UsageError` for another value."""
        name, most_seen = value["name"], value.get("most_seen")
        if not isinstance(name, str) or len(name) > _MOST_NAME:
            raise UsageError(f"name is {shown(name)}; expected a text of up to {_MOST_NAME} characters.")
        seen = tuple((whole("by_seen", n, 0, MOST_TOKENS), a_time("by_seen", s)) for n, s in value.get("by_seen", ()))
        if any(first >= second for (first, _), (second, _) in pairwise(seen)):
            raise UsageError(f"by_seen is {shown(seen)}; expected rising numbers of positions.")
        return cls(
            name,
            tuple(whole("sublayers", index, 0, 2 * MOST_LAYERS - 1) for index in value["sublayers"]),
            by_precision("seconds", value["seconds"]),
            whole("seen", value.get("seen", 0), 0, MOST_TOKENS),
            None if most_seen is None else whole("most_seen", most_seen, 0, MOST_TOKENS),
            seen,
            whole("experts", value.get("experts", 0), 0, _MOST_EXPERTS),
            by_precision("each_expert", value.get("each_expert", {})),
        )


def by_precision(name: str, value: Mapping[str, float]) -> dict[Precision, float]:
    """Seconds by precision, as a file states them. Raises `UsageError`, or ValueError for an unknown precision."""
    return {Precision(kind): a_time(f"{name}.{kind}", seconds) for kind, seconds in value.items()}


def a_time(name: str, value: Any) -> float:
    """Seconds, as a file states them. Raises `UsageError` for another value."""
    return float(number(name, value, 0.0, MOST_SECONDS))


def cost_of(costs: Mapping[Precision, float], precision: Precision) -> float:
    """Raises ValueError for a precision of which nothing was measured."""
    if precision not in costs:
        raise ValueError(f"no costs were measured at precision {precision}; measured: {', '.join(costs)}")
    return costs[precision]


def on_line(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """The value at ``place`` on the lines between rising ``places``.

    Below the first it is the first; past the last it goes on along the last line, which
    never falls: a longer context cannot cost less.
    """
    if place <= places[0] or len(places) == 1:
        return values[0]
    for (low, high), (first, second) in zip(pairwise(places), pairwise(values), strict=True):
        if place <= high:
            return first + (second - first) * (place - low) / (high - low)
    slope = max((values[-1] - values[-2]) / (places[-1] - places[-2]), 0.0)
    return values[-1] + slope * (place - places[-1])
