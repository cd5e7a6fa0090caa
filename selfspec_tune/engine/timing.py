"""Timing the engine's steps: many kinds, interleaved, one value of each a round.

On a machine that is never quite quiet only what was timed side by side can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter

from selfspec_tune.draft import Draft
from selfspec_tune.engine.greedy import greedy_steps
from selfspec_tune.engine.runner import Runner

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Step:
    """Something to time; ``prepare`` runs before it, untimed."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often: from ``least`` to ``most`` rounds, fewer where ``seconds`` run out; a first one is not counted."""

    least: int = 2
    most: int = 7
    seconds: float = inf


def decode_step(runner: Runner, token: int) -> Step:
    """A plain decode step after another, the choice of its token included: a step ends when its token is known."""
    greedy = greedy_steps(runner)

    def run() -> None:
        greedy.decode_greedy(token)

    return Step(run, _taken_back(runner, run))


def verify_step(runner: Runner, token: int, num_drafted: int, after: Draft | None = None) -> Step:
    """Verification of ``num_drafted`` tokens: one full pass over one more, after a step of the draft ``after``.

    A draft's weights take those of the verification out of the caches, and the other way round.
    """
    greedy, tokens = greedy_steps(runner), [token] * (num_drafted + 1)
    before = None if after is None else draft_step(runner, token, after).prepare
    return Step(lambda: greedy.verify_greedy(tokens), before)


def draft_step(runner: Runner, token: int, draft: Draft, num_guesses: int = 0) -> Step:
    """A draft step in the midst of a draft: one with the same draft comes before it, untimed.

    It tries ``num_guesses`` looked-up tokens. Where the policy asks for the drafted token's
    probability, computing that is part of it.
    """

    def prepare() -> None:
        runner.set_draft(draft)
        _taken_back(runner, lambda: runner.draft_step(token))()

    return Step(_drafting(runner, token, draft, num_guesses), prepare)


def first_draft_step(runner: Runner, token: int, draft: Draft) -> Step:
    """The draft step that a round begins with: a full pass comes before it, untimed."""
    greedy = greedy_steps(runner)

    def prepare() -> None:
        runner.set_draft(draft)
        _taken_back(runner, lambda: greedy.decode_greedy(token))()

    return Step(_drafting(runner, token, draft), prepare)


def _drafting(runner: Runner, token: int, draft: Draft, num_guesses: int = 0) -> Callable[[], object]:
    greedy = greedy_steps(runner, needs_probability=draft.policy.needs_probability)
    if not num_guesses:
        return lambda: greedy.draft_greedy(token, 1)
    return lambda: greedy.draft_pass_greedy([token] * (1 + num_guesses))


def _taken_back(runner: Runner, run: Callable[[], object]) -> Callable[[], None]:
    """``run``, and the positions that it put into the cache taken back."""

    def both() -> None:
        prefix = runner.length
        run()
        runner.rewind(prefix)

    return both


def time_steps(
    runner: Runner, steps: Mapping[str, Step], rounds: Rounds, clock: Clock = perf_counter
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
