"""The small interface between decoding and a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from selfspec_tune.draft import Draft
from selfspec_tune.errors import PromptError, UsageError


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
            "Use shorter prompts or a smaller --max-new-tokens."
        )
