"""Greedy steps of any runner: its own where it has them, else chosen from its logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selfspec_tune.engine.finite import most_probable
from selfspec_tune.engine.runner import GreedySteps, Runner


def greedy_steps(runner: Runner, *, needs_probability: bool = False) -> GreedySteps:
    """The runner itself where it has `GreedySteps`, else an adapter.

    ``needs_probability``: whether drafted tokens' probabilities will be asked for. Look once
    a generation, not once a step.
    """
    return runner if isinstance(runner, GreedySteps) else _FromLogits(runner, needs_probability=needs_probability)


class _FromLogits:
    """`GreedySteps` of a runner that gives logits alone."""

    def __init__(self, runner: Runner, *, needs_probability: bool) -> None:
        self._runner = runner
        self._needs_probability = needs_probability

    def decode_greedy(self, token: int) -> int:
        return most_probable(self._runner.decode(token)[None], self._runner)[0]

    def draft_greedy(self, token: int, count: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        probabilities: list[float] = []
        for _ in range(count):
            logits = self._runner.draft_step(token)
            token = int(logits.argmax())
            tokens.append(token)
            probabilities.append(self._probability(logits, token))
        return tokens, probabilities

    def draft_pass_greedy(self, tokens: Sequence[int]) -> tuple[list[int], list[float]]:
        logits = self._runner.draft_pass(tokens)
        following: list[int] = logits.argmax(-1).tolist()
        return following, [self._probability(row, token) for row, token in zip(logits, following, strict=True)]

    def verify_greedy(self, tokens: Sequence[int]) -> list[int]:
        return most_probable(self._runner.verify(tokens), self._runner)

    def _probability(self, logits: Tensor, token: int) -> float:
        """The softmax of logits [vocabulary] at ``token``, where anybody asks for it."""
        if not self._needs_probability:
            return 1.0
        scores = logits.float()
        return float(torch.exp(scores[token] - scores.logsumexp(-1)))
