"""How an answer is decoded: plain values, checked before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from secrets import randbelow
from typing import Any, TypedDict

from selfspec_tune.errors import UsageError
from selfspec_tune.requests import LARGEST_SEED, LARGEST_TEMPERATURE, check_number

_LARGEST_PENALTY = 100.0


class SamplingOptions(TypedDict, total=False):
    """The keywords of `Model.generate`, `Model.stream` and `Chat.send`; see `Sampling` for what they mean."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer's tokens are drawn, and where it ends.

    Attributes:
        max_new_tokens: most tokens of the answer; the model's context may end it sooner.
        temperature: 0 (greedy) to 100; scores are divided by it.
        top_k: draw from so many most probable tokens; 0: from all.
        top_p: draw from the most probable tokens that make up this probability, above 0; 1: from all.
        min_p: draw from tokens at least so many times as probable as the most probable one; 0: from all.
        repetition_penalty: divides positive logits of tokens that occurred before, prompt included, and multiplies
            negative ones; 1: none.
        seed: of the draws; None: another one each time.
        stop: texts before which the answer ends.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("max_new_tokens", self.max_new_tokens, 1, math.inf, "a whole number from 1 on", whole=True)
        check_number("temperature", self.temperature, 0, LARGEST_TEMPERATURE, f"0 to {LARGEST_TEMPERATURE:g}")
        check_number("top_k", self.top_k, 0, math.inf, "0 (off) or more", whole=True)
        check_number("top_p", self.top_p, math.ulp(0.0), 1, "above 0 and at most 1")
        check_number("min_p", self.min_p, 0, 1, "0 (off) to 1")
        penalties = f"above 0, up to {_LARGEST_PENALTY:g}; 1 is none"
        check_number("repetition_penalty", self.repetition_penalty, math.ulp(0.0), _LARGEST_PENALTY, penalties)
        if self.seed is not None:
            check_number("seed", self.seed, 0, LARGEST_SEED, f"0 or more, up to {LARGEST_SEED}", whole=True)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise UsageError(f"stop {self.stop!r}: expected texts of one character or more.")

    def seeded(self) -> Sampling:
        """The same with a seed, drawn where there is none."""
        return self if self.seed is not None else replace(self, seed=randbelow(LARGEST_SEED + 1))

    @classmethod
    def of(cls, options: SamplingOptions) -> Sampling:
        """Checked. Raises `UsageError` for an option that is not known and for a value that means nothing.

        >>> Sampling.of({"temperature": 0.7, "stop": "\\n"}).stop
        ('\\n',)
        """
        given: dict[str, Any] = dict(options)
        known = cls.__dataclass_fields__
        for name in given:
            if name not in known:
                close = get_close_matches(name, known, 1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise UsageError(f"There is no option {name!r} of an answer; expected {', '.join(known)}.{hint}")
        stop = given.get("stop") or ()
        return cls(**given | {"stop": (stop,) if isinstance(stop, str) else tuple(stop)})
