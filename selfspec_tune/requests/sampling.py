"""How tokens are drawn: the same for a search, a bench and an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypedDict

from selfspec_tune.checks import check_number

SMALLEST_TEMPERATURE = 1e-5  # below, one token has all of the probability: that is greedy decoding
LARGEST_TEMPERATURE = 100.0  # above, every token is as likely as any other
LARGEST_SEED = 2**31 - 1  # every generator takes it, and what is derived from it
TEMPERATURES = f"0 to {LARGEST_TEMPERATURE:g}; 0 is greedy"
_SMALLEST_PENALTY, _LARGEST_PENALTY = 0.01, 100.0
_ALWAYS_RECORDED = ("temperature", "top_p", "top_k")  # so that files look as they did before there were others
_OF_DRAWS = frozenset({"temperature", "top_k", "top_p", "min_p"})  # without effect where nothing is drawn


class SamplingValues(TypedDict, total=False):
    """The fields of `Sampling` as keywords, for type checkers."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 (greedy) to 100; scores are divided by it. What is below `SMALLEST_TEMPERATURE` becomes 0.
        top_k: draw from so many most probable tokens; 0: from all.
        top_p: draw from the most probable tokens that make up this probability, above 0; 1: from all.
        min_p: draw from tokens at least so many times as probable as the most probable one; 0: from all.
        repetition_penalty: divides positive logits of tokens that occurred before, prompt included, and multiplies
            negative ones; greedy decoding's too. 1: none.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, LARGEST_TEMPERATURE, TEMPERATURES)
        if self.temperature < SMALLEST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        check_number("top_k", self.top_k, 0, math.inf, "a whole number, 0 (off) or more", whole=True)
        check_number("top_p", self.top_p, math.ulp(0.0), 1, "above 0 and at most 1")
        check_number("min_p", self.min_p, 0, 1, "0 (off) to 1")
        penalties = f"{_SMALLEST_PENALTY:g} to {_LARGEST_PENALTY:g}; 1 is none"
        check_number("repetition_penalty", self.repetition_penalty, _SMALLEST_PENALTY, _LARGEST_PENALTY, penalties)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def sampling(self) -> dict[str, Any]:
        """Every value, by name."""
        return {name: getattr(self, name) for name in Sampling.__dataclass_fields__}

    @property
    def recorded(self) -> dict[str, Any]:
        """What files say: all that is not as usual, and some of what is."""
        values, usual = self.sampling, Sampling().sampling
        told = dict.fromkeys((*_ALWAYS_RECORDED, *(name for name in values if values[name] != usual[name])))
        return {name: values[name] for name in told}

    @property
    def in_force(self) -> dict[str, Any]:
        """Those of the `recorded` that have an effect: greedy decoding has no temperature, and leaves none out."""
        return {name: value for name, value in self.recorded.items() if not (self.greedy and name in _OF_DRAWS)}

    @property
    def about_idle(self) -> str | None:
        """What is asked for and has no effect, since decoding is greedy; None where there is nothing of the kind."""
        usual, in_force = Sampling().sampling, self.in_force
        idle = {name: value for name, value in self.recorded.items() if name not in in_force and value != usual[name]}
        if not idle:
            return None
        said = " and ".join(f"`{name}` {value:g}" for name, value in idle.items())
        return f"{said}: without effect where the temperature is 0, since decoding is greedy there"
