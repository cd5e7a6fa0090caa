"""Times of the engine's steps after one context, and what steps of a draft take in the rounds of a generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import median

from selfspec_tune.draft import Draft
from selfspec_tune.engine.cost_fit import DraftTiming
from selfspec_tune.engine.runner import Runner
from selfspec_tune.engine.timing import (
    Clock,
    Rounds,
    Step,
    decode_step,
    draft_step,
    first_draft_step,
    time_steps,
    verify_step,
)

_MOST_GUESSES = 4  # in the draft step that tells what one costs
_AMID, _FIRST, _TRYING = "in a draft", "first of a draft", "trying tokens"


@dataclass(frozen=True, slots=True)
class ContextTimings:
    """Seconds of every step after ``length`` tokens, one value a round. ``verify[k]`` verifies k tokens.

    ``in_rounds``: of a few drafts, where they were timed here.
    """

    length: int
    verify: tuple[list[float], ...]
    drafts: tuple[DraftTiming, ...]
    others: dict[str, list[float]]
    in_rounds: tuple[DraftInRound, ...] = ()


@dataclass(frozen=True, slots=True)
class DraftInRound:
    """Seconds of a draft's steps: in the midst of a draft, after a verification, and trying ``num_guesses`` tokens."""

    amid: list[float]
    first: list[float]
    trying: list[float]
    num_guesses: int

    @property
    def cold(self) -> float:
        """Seconds that the first step of a round takes more than the next; timed in pairs, a step of each a round."""
        return max(median(first - amid for first, amid in zip(self.first, self.amid, strict=True)), 0.0)

    @property
    def guess(self) -> float:
        """What each looked-up token adds to the step that tries it, as a share of a step without."""
        return max(median(self.trying) / median(self.amid) - 1.0, 0.0) / max(self.num_guesses, 1)


def at_one_speed(timings: Sequence[ContextTimings]) -> list[ContextTimings]:
    """The timings as if the machine had been as fast at every context as it was at the first.

    Contexts are timed one after the other, and a shared machine's memory may be half as fast in
    the next minute. Told by the draft without attention, which costs the same after any context.
    """
    references = [median(_without_attention(timing).seconds) for timing in timings]
    return [_scaled(timing, references[0] / then) for timing, then in zip(timings, references, strict=True)]


@dataclass(frozen=True, slots=True)
class ContextSteps:
    """What to time at one context. Verifications follow ``whole``; ``in_rounds``: drafts whose rounds are timed."""

    runner: Runner
    token: int
    drafts: Sequence[Draft]
    whole: Draft
    in_rounds: Sequence[Draft]
    widest: int
    others: Mapping[str, Step]

    def time(self, rounds: Rounds, clock: Clock) -> ContextTimings:
        runner, token, length = self.runner, self.token, self.runner.length
        steps = {f"verify {k}": verify_step(runner, token, k, self.whole) for k in range(1, self.widest + 1)}
        steps |= {"verify 0": decode_step(runner, token)}
        steps |= {f"draft {i}": draft_step(runner, token, draft) for i, draft in enumerate(self.drafts)}
        for number, draft in enumerate(self.in_rounds):
            steps |= steps_in_round(runner, token, draft, self.widest, number)
        seconds = time_steps(runner, _shuffled({**steps, **self.others}), rounds, clock)
        return ContextTimings(
            length,
            tuple(seconds[f"verify {k}"] for k in range(self.widest + 1)),
            tuple(DraftTiming(length, draft, seconds[f"draft {i}"]) for i, draft in enumerate(self.drafts)),
            {name: seconds[name] for name in self.others},
            tuple(in_round_of(seconds, self.widest, number) for number in range(len(self.in_rounds))),
        )


def steps_in_round(runner: Runner, token: int, draft: Draft, widest: int, number: int = 0) -> dict[str, Step]:
    """Steps of the ``number``-th draft as its rounds have them; no pass is over more than ``widest`` tokens and one."""
    return {
        f"{_AMID} {number}": draft_step(runner, token, draft),
        f"{_FIRST} {number}": first_draft_step(runner, token, draft),
        f"{_TRYING} {number}": draft_step(runner, token, draft, min(_MOST_GUESSES, widest)),
    }


def in_round_of(seconds: Mapping[str, list[float]], widest: int, number: int = 0) -> DraftInRound:
    """The times of `steps_in_round`."""
    amid, first, trying = (seconds[f"{kind} {number}"] for kind in (_AMID, _FIRST, _TRYING))
    return DraftInRound(amid, first, trying, min(_MOST_GUESSES, widest))


def _shuffled(steps: dict[str, Step]) -> dict[str, Step]:
    """In a fixed random order, so that a slow moment does not hit steps of one kind alone."""
    names = list(steps)
    Random(0).shuffle(names)
    return {name: steps[name] for name in names}


def has_no_attention(draft: Draft) -> bool:
    """Whether a draft keeps MLPs alone, all of them."""
    skipped = draft.skip_set
    return len(skipped.attention) == skipped.num_layers and not skipped.mlp


def _without_attention(timing: ContextTimings) -> DraftTiming:
    return next(timed for timed in timing.drafts if has_no_attention(timed.draft))


def _scaled(timing: ContextTimings, factor: float) -> ContextTimings:
    def scaled(seconds: Sequence[float]) -> list[float]:
        return [factor * value for value in seconds]

    return replace(
        timing,
        verify=tuple(map(scaled, timing.verify)),
        drafts=tuple(replace(timed, seconds=scaled(timed.seconds)) for timed in timing.drafts),
        others={name: scaled(seconds) for name, seconds in timing.others.items()},
    )
