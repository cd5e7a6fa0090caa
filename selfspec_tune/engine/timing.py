"""Timing the engine's steps: many kinds, interleaved, one value of each a round.

On a machine that is never quite quiet only what was timed side by side can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random
from statistics import median
from time import perf_counter

from selfspec_tune.draft import Draft
from selfspec_tune.engine.runner import Runner, Want

Clock = Callable[[], float]
_MOST_GUESSES = 8  # in the draft step that tells what one costs
_EACH_DRAFTED = 16  # tokens up to which each verification is timed
_AMID, _FIRST, _TRYING = "in a draft", "first of a draft", "trying tokens"


@dataclass(frozen=True, slots=True)
class Step:
    """Something to time; ``prepare`` runs before it, untimed."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class TimingRounds:
    """How often: from ``least`` to ``most`` rounds, fewer where ``seconds`` run out; a first one is not counted."""

    least: int = 2
    most: int = 7
    seconds: float = inf


def decode_step(runner: Runner, text: Sequence[int]) -> Step:
    """A plain decode step after another, the choice of its token included: a step ends when its token is known.

    Its token, as those of all steps here, is the last of ``text``: experts are read by what a token goes to, so
    several tokens must be such as follow each other, not one token several times.
    """

    def run() -> None:
        runner.forward(_last(text, 1), want=Want.TOKENS)

    return Step(run, _taken_back(runner, lambda: runner.forward(_before(text), want=Want.TOKENS)))


def verify_step(runner: Runner, text: Sequence[int], num_drafted: int, after: Draft | None = None) -> Step:
    """Verification of ``num_drafted`` tokens: one full pass over one more, after a step of the draft ``after``.

    A draft's weights take those of the verification out of the caches, and the other way round.
    """
    tokens = _last(text, num_drafted + 1)
    before = None if after is None else draft_step(runner, text, after).prepare
    return Step(lambda: runner.forward(tokens, want=Want.TOKENS), before)


def draft_step(runner: Runner, text: Sequence[int], draft: Draft, num_guesses: int = 0) -> Step:
    """A draft step in the midst of a draft: one with the same draft comes before it, untimed.

    It tries ``num_guesses`` looked-up tokens. Where the policy asks for the drafted token's
    probability, computing that is part of it.
    """

    def prepare() -> None:
        runner.set_draft(draft)
        _taken_back(runner, lambda: runner.forward(_before(text), is_draft=True))()

    return Step(_drafting(runner, text, draft, num_guesses), prepare)


def first_draft_step(runner: Runner, text: Sequence[int], draft: Draft) -> Step:
    """The draft step that a round begins with: a full pass comes before it, untimed."""

    def prepare() -> None:
        runner.set_draft(draft)
        _taken_back(runner, lambda: runner.forward(_before(text), want=Want.TOKENS))()

    return Step(_drafting(runner, text, draft), prepare)


def _drafting(runner: Runner, text: Sequence[int], draft: Draft, num_guesses: int = 0) -> Callable[[], object]:
    tokens = _last(text, 1 + num_guesses)
    return lambda: runner.forward(tokens, is_draft=True, want=Want.CERTAINTIES)


def _last(text: Sequence[int], count: int) -> list[int]:
    """The last ``count`` tokens of a text, which is repeated where it has fewer."""
    return (list(text[-count:]) * -(-count // len(text)))[-count:]


def _before(text: Sequence[int]) -> list[int]:
    """The token before the last."""
    return _last(text, 2)[:1]


def _taken_back(runner: Runner, run: Callable[[], object]) -> Callable[[], None]:
    """``run``, and the positions that it put into the cache taken back."""

    def both() -> None:
        prefix = runner.length
        run()
        runner.rewind(prefix)

    return both


def time_steps(
    runner: Runner, steps: Mapping[str, Step], rounds: TimingRounds, clock: Clock = perf_counter
) -> dict[str, list[float]]:
    """Seconds of each step, one value a round, all after the positions that are in the cache now.

    Every other round runs backwards, so that no step always follows the same one.
    """
    prefix = runner.length
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    begun = clock()
    for number in range(rounds.most + 1):
        for name in _order(list(steps), number):
            elapsed = _timed(runner, steps[name], clock)
            runner.rewind(prefix)
            if number > 0:  # the first round warms up
                seconds[name].append(elapsed)
        spent = clock() - begun
        if number >= rounds.least and spent + spent / (number + 1) > rounds.seconds:
            break
    return seconds


def _order(names: Sequence[str], number: int) -> Sequence[str]:
    return names if number % 2 == 0 else names[::-1]


def _timed(runner: Runner, step: Step, clock: Clock) -> float:
    if step.prepare is not None:
        step.prepare()
    runner.synchronize()
    begun = clock()
    step.run()
    runner.synchronize()
    return clock() - begun


@dataclass(frozen=True, slots=True)
class TimedDraft:
    """Steps of ``draft`` after ``length`` tokens: seconds, one value a round."""

    length: int
    draft: Draft
    seconds: Sequence[float]


@dataclass(frozen=True, slots=True)
class ContextTimings:
    """Seconds of every step after ``length`` tokens, one value a round. ``verify[k]`` verifies k tokens, for some k.

    ``in_rounds``: of a few drafts, where they were timed here.
    """

    length: int
    verify: Mapping[int, list[float]]
    drafts: tuple[TimedDraft, ...]
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
    """What to time at one context. Verifications follow ``whole``; ``in_rounds``: drafts whose rounds are timed.

    ``text``: whose last tokens the steps are over.
    """

    runner: Runner
    text: Sequence[int]
    drafts: Sequence[Draft]
    whole: Draft
    in_rounds: Sequence[Draft]
    widest: int
    others: Mapping[str, Step]

    def time(self, rounds: TimingRounds, clock: Clock) -> ContextTimings:
        runner, text, length = self.runner, self.text, self.runner.length
        drafted = drafted_to_time(self.widest)
        steps = {f"verify {k}": verify_step(runner, text, k, self.whole) for k in drafted if k}
        steps |= {"verify 0": decode_step(runner, text)}
        steps |= {f"draft {i}": draft_step(runner, text, draft) for i, draft in enumerate(self.drafts)}
        for number, draft in enumerate(self.in_rounds):
            steps |= steps_in_round(runner, text, draft, self.widest, number)
        seconds = time_steps(runner, _shuffled({**steps, **self.others}), rounds, clock)
        return ContextTimings(
            length,
            {k: seconds[f"verify {k}"] for k in drafted},
            tuple(TimedDraft(length, draft, seconds[f"draft {i}"]) for i, draft in enumerate(self.drafts)),
            {name: seconds[name] for name in self.others},
            tuple(in_round_of(seconds, self.widest, number) for number in range(len(self.in_rounds))),
        )


def steps_in_round(runner: Runner, text: Sequence[int], draft: Draft, widest: int, number: int = 0) -> dict[str, Step]:
    """Steps of the ``number``-th draft as its rounds have them; no pass is over more than ``widest`` tokens and one."""
    return {
        f"{_AMID} {number}": draft_step(runner, text, draft),
        f"{_FIRST} {number}": first_draft_step(runner, text, draft),
        f"{_TRYING} {number}": draft_step(runner, text, draft, min(_MOST_GUESSES, widest)),
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


def drafted_to_time(widest: int) -> list[int]:
    """Of how many drafted tokens to time the verification, up to ``widest``: of long drafts every fourth number."""
    return sorted({widest, *(k for k in range(widest) if k <= _EACH_DRAFTED or k % 4 == 0)})


def has_no_attention(draft: Draft) -> bool:
    """Whether a draft keeps MLPs alone, all of them."""
    skipped = draft.skip_set
    return len(skipped.attention) == skipped.num_layers and not skipped.mlp


def _without_attention(timing: ContextTimings) -> TimedDraft:
    return next(timed for timed in timing.drafts if has_no_attention(timed.draft))


def _scaled(timing: ContextTimings, factor: float) -> ContextTimings:
    def scaled(seconds: Sequence[float]) -> list[float]:
        return [factor * value for value in seconds]

    return replace(
        timing,
        verify={k: scaled(seconds) for k, seconds in timing.verify.items()},
        drafts=tuple(replace(timed, seconds=scaled(timed.seconds)) for timed in timing.drafts),
        others={name: scaled(seconds) for name, seconds in timing.others.items()},
    )
