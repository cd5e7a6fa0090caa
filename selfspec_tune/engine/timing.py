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
    """A plain decode step, the greedy choice of its token included: a step ends when its token is known."""
    greedy = greedy_steps(runner)
    return Step(lambda: greedy.decode_greedy(token))


def verify_step(runner: Runner, token: int, num_drafted: int) -> Step:
    """Verification of ``num_drafted`` tokens: one full pass over one more."""
    greedy, tokens = greedy_steps(runner), [token] * (num_drafted + 1)
    return Step(lambda: greedy.verify_greedy(tokens))


def draft_step(runner: Runner, token: int, draft: Draft) -> Step:
    """A draft step in the midst of a draft: one with the same draft comes before it, untimed.

    Where the policy asks for the drafted token's probability, computing that is part of it.
    """

    def prepare() -> None:
        prefix = runner.length
        runner.set_draft(draft)
        runner.draft_step(token)
        runner.rewind(prefix)

    greedy = greedy_steps(runner, needs_probability=draft.policy.needs_probability)
    return Step(lambda: greedy.draft_greedy(token, 1), prepare)


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
