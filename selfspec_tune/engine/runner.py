"""The small interface between decoding and a model: logits that are numbers, or greedy steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.errors import NonFiniteError, PromptError, UsageError

_NUM_TOKENS = 40  # those that engines are compared on


class Runner(Protocol):
    """Runs one sequence (batch 1) through a model with a rewindable KV cache.

    The cache holds `length` positions. Every call takes the tokens that follow them and
    extends the cache; `rewind` takes positions back. Draft steps write their keys and
    values after the verified prefix; verification overwrites them.
    """

    name: str
    num_layers: int
    vocabulary_size: int

    @property
    def about(self) -> str:
        """The model and its number format, for messages."""

    @property
    def length(self) -> int:
        """Positions in the cache."""

    @property
    def capacity(self) -> int:
        """Positions that the cache can hold now."""

    def reserve(self, capacity: int) -> None:
        """Make room for at least ``capacity`` positions; may empty the cache."""

    def set_draft(self, draft: Draft) -> None:
        """Choose what `draft_step` leaves out. Raises `UsageError` for a precision that the runner lacks."""

    def prefill(self, tokens: Sequence[int]) -> Tensor:
        """Empty the cache, run the prompt through the full model; logits [vocabulary] of its last position."""

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Run more of a prompt after what is cached; logits [vocabulary] of its last position."""

    def decode(self, token: int) -> Tensor:
        """One full-model step; logits [vocabulary]."""

    def draft_step(self, token: int) -> Tensor:
        """One step with the draft's sub-layers skipped; logits [draft vocabulary]."""

    def draft_pass(self, tokens: Sequence[int]) -> Tensor:
        """One pass of the draft over k tokens; logits [k, draft vocabulary]."""

    def verify(self, tokens: Sequence[int]) -> Tensor:
        """One full-model pass over k + 1 tokens; logits [k + 1, vocabulary]."""

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""


@runtime_checkable
class GreedySteps(Protocol):
    """What a runner may offer beyond `Runner`: greedy steps that choose their tokens where the logits are.

    The same passes as `Runner`'s: no logits leave the device, or are even written down. A step
    gives the most probable token; of equal ones the first.
    """

    def decode_greedy(self, token: int) -> int:
        """`Runner.decode`; the token that follows."""

    def draft_greedy(self, token: int, count: int) -> tuple[list[int], list[float]]:
        """``count`` draft steps from ``token``, each on the most probable token of the one before.

        Returns the drafted tokens and the probability of each, which may be 1.0 where the
        policy of `set_draft` does not need it. Asks no policy between the steps.
        """

    def draft_pass_greedy(self, tokens: Sequence[int]) -> tuple[list[int], list[float]]:
        """`Runner.draft_pass`; the token that follows each, and its probability as in `draft_greedy`."""

    def verify_greedy(self, tokens: Sequence[int]) -> list[int]:
        """`Runner.verify`; the token that follows each of the k + 1."""


@runtime_checkable
class Resumable(Protocol):
    """What a runner offers whose cache can be read and put back."""

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """One layer's cached keys and values, [kv heads, length, head size] each, keys rotated."""

    def resume(self, layers: Iterable[tuple[Tensor, Tensor]], length: int) -> None:
        """Go on as if each layer's keys and values [kv heads, length, head size] had been computed."""


def make_room(runner: Runner, capacity: int, known: int = 0) -> int:
    """Room for ``capacity`` positions, of which the first ``known`` stay cached; how many of these are there then."""
    if not known:
        runner.reserve(capacity)
        return 0
    runner.rewind(known)
    known = runner.length
    if capacity <= runner.capacity or not isinstance(runner, Resumable):
        runner.reserve(capacity)
        return runner.length
    kept = [runner.keys_and_values(layer) for layer in range(runner.num_layers)]
    runner.reserve(capacity)
    runner.resume(kept, known)
    return known


def check_cache(end: int, capacity: int) -> None:
    """Raise `UsageError` where a pass would end past the cache."""
    if end > capacity:
        raise UsageError(
            f"The pass ends at position {end}, and the cache holds {capacity}. Reserve room for the whole "
            "answer before prefill: runner.reserve(len(prompt) + max_new_tokens)."
        )


def check_same_precision(draft: Draft, runner_name: str) -> None:
    """Raise `UsageError` where a runner without low-precision copies is to draft with one."""
    if not draft.precision.is_same:
        raise UsageError(
            f"The {runner_name} runner cannot draft at {draft.precision}: it holds the weights at their own precision "
            "only. Draft at precision same, or choose a runner with low-precision copies."
        )


def check_room(needed: int, context_length: int) -> None:
    """Raise `PromptError` where ``needed`` positions exceed the model's context."""
    if needed > context_length:
        raise PromptError(
            f"prompt and answer need {needed} positions; the model's context has {context_length}. "
            "Use shorter prompts or a smaller `max_new_tokens`."
        )


def most_probable(logits: Tensor, runner: Runner) -> list[int]:
    """The most probable token of each row of logits [positions, vocabulary], those of the runner's last pass.

    Raises `NonFiniteError`, as `check_logits` does.
    """
    largest, tokens = logits.max(-1)
    rows: list[list[float]] = torch.stack((tokens.double(), largest.double()), -1).tolist()  # waits for the device once
    check_largest([row[1] for row in rows], runner)
    return [int(row[0]) for row in rows]


def check_logits(logits: Tensor, runner: Runner) -> None:
    """Raise `NonFiniteError` unless logits [positions, vocabulary] of the runner's last pass are numbers.

    Minus infinity is one where others are not: a model's way to rule tokens out.
    """
    check_largest(logits.max(-1).values.tolist(), runner)  # a NaN is the largest of all


def check_largest(largest: Sequence[float], runner: Runner) -> None:
    """The same by the largest logit, or the logarithm of the normaliser, of each position."""
    for place, value in enumerate(largest):
        if not isfinite(value):
            raise NonFiniteError(
                f"{runner.about}: the logits at position {runner.length - len(largest) + place + 1} are no finite "
                "numbers, so nothing that it decodes means anything, and no figure is given. Use another `dtype`: "
                "float16 ends at 65504, float32 holds most. If it stays in float32, the checkpoint is broken: get it "
                "again."
            )


def check_differ(logits: Tensor, runner: Runner) -> None:
    """Raise `NonFiniteError` where logits [positions, vocabulary], which are numbers, are all the same at each."""
    low, high = torch.aminmax(logits, dim=-1)
    if bool((low == high).all()):
        raise NonFiniteError(
            f"{runner.about}: every token has the same logit at position {runner.length}, whatever comes before it: "
            "it computes nothing. Its weights or its configuration are broken: get the checkpoint again."
        )


def check_first_pass(runner: Runner, num_embedded: int) -> None:
    """Look at a pass over arbitrary but fixed tokens, of the ``num_embedded`` that the model embeds.

    Raises `NonFiniteError` where it does not give numbers at every position, or the same one to every token.
    """
    generator = torch.Generator().manual_seed(0)
    count = min(_NUM_TOKENS, runner.capacity)
    tokens: list[int] = torch.randint(min(runner.vocabulary_size, num_embedded), (count,), generator=generator).tolist()
    runner.reserve(len(tokens))
    first = runner.prefill(tokens[:1])[None]
    check_logits(first, runner)
    logits = torch.cat((first, runner.verify(tokens[1:]))) if len(tokens) > 1 else first
    check_logits(logits[1:], runner)
    check_differ(logits, runner)


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
