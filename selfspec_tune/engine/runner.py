"""The small interface between decoding and a model: one call, and whether what it gives are numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf, isfinite
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from selfspec_tune.draft import Certainty, Draft, experts_a_token
from selfspec_tune.draft.rounds import MOST_MARGIN
from selfspec_tune.draft.source import common_prefix
from selfspec_tune.errors import NonFiniteError, PromptError, UsageError
from selfspec_tune.models import LoadedModel

_NUM_TOKENS = 40  # those that engines are compared on
_LEAST = -87.0  # of a logit below the largest: exp() of less is nothing, and minus infinity times nothing no number


class Want(Enum):
    """What the caller needs of a pass: the less, the cheaper."""

    TOKENS = "tokens"
    CERTAINTIES = "certainties"  # the tokens and how sure the model is of them: what is asked of a draft
    LOGITS = "logits"  # these alone


_NO_LOGITS = torch.empty(0)


@dataclass(slots=True)
class Scores:
    """What a pass gives, as far as it was wanted; what was not wanted is empty.

    ``tokens``: the most probable one after each position, of equal ones the first; ``certainties`` of these;
    ``logits`` [positions, vocabulary], of a draft [positions, ids up to the last that it chooses from]: minus infinity
    where it does not choose from an id before that.
    """

    tokens: list[int] = field(default_factory=list)
    certainties: list[Certainty] = field(default_factory=list)
    logits: Tensor = _NO_LOGITS

    def last(self, count: int) -> Scores:
        """Of the last ``count`` positions alone."""
        return Scores(self.tokens[-count:], self.certainties[-count:], self.logits[-count:])

    def extend(self, others: Scores) -> None:
        """Add tokens that follow, and how sure of them the model is."""
        self.tokens += others.tokens
        self.certainties += others.certainties


class Runner(Protocol):
    """Runs one sequence (batch 1) through a model with a rewindable KV cache.

    The cache holds `length` positions. Every pass takes the tokens that follow them and
    extends the cache; `rewind` takes positions back. Drafts write their keys and
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
        """Choose what a draft's pass leaves out. Raises `UsageError` for a precision that the runner lacks."""

    def know(self, tokens: Iterable[int]) -> None:
        """Let drafts that cover a part of the vocabulary choose the ids of the text too, which begins or goes on so.

        The next `set_draft` forgets the text.
        """

    @property
    def draft_ids(self) -> Tensor | None:
        """The ids that drafts choose from [ids], ascending; None: as many of the first as their logits are wide."""

    def forward(
        self, tokens: Sequence[int], *, is_draft: bool = False, want: Want = Want.LOGITS, last_only: bool = False
    ) -> Scores:
        """One pass over ``tokens``, of the full model or of the draft: a step over one, a verification over k + 1.

        ``last_only``: of the last position alone, as after a prompt, however long it is. Raises `NonFiniteError` where
        the full model's tokens are wanted and its logits are no numbers at the first position, or after tokens that it
        chose itself: what comes after another is read by nobody. Logits, and what a draft gives, are as they come.
        """

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` positions."""

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""


@runtime_checkable
class DraftsAhead(Protocol):
    """What a runner offers that need not wait for a draft step's token before it begins the next step."""

    def draft_ahead(self, token: int, count: int) -> Scores:
        """``count`` draft steps from ``token``, each on the most probable token of the one before.

        These tokens, and how sure the draft is of them.
        """


@runtime_checkable
class Resumable(Protocol):
    """What a runner offers whose cache can be read and put back."""

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """One layer's cached keys and values, [kv heads, length, head size] each, keys rotated."""

    def resume(self, layers: Iterable[tuple[Tensor, Tensor]], length: int) -> None:
        """Go on as if each layer's keys and values [kv heads, length, head size] had been computed."""


def make_room(runner: Runner, capacity: int, known: int = 0) -> int:
    """Room for ``capacity`` positions, of which the first ``known`` stay cached; how many of these are there then."""
    runner.rewind(known)
    if not known:
        runner.reserve(capacity)
        return 0
    known = runner.length
    if capacity <= runner.capacity or not isinstance(runner, Resumable):
        runner.reserve(capacity)
        return runner.length
    kept = [runner.keys_and_values(layer) for layer in range(runner.num_layers)]
    runner.reserve(capacity)
    runner.resume(kept, known)
    return known


def prefill(runner: Runner, prompt: Sequence[int]) -> Tensor:
    """Empty the cache and run a prompt through the full model; logits [vocabulary] of its last position."""
    runner.reserve(len(prompt))
    runner.rewind(0)
    return runner.forward(prompt, last_only=True).logits[0]


def draft_ahead(runner: Runner, token: int, count: int) -> Scores:
    """As `DraftsAhead.draft_ahead`, by any runner."""
    if isinstance(runner, DraftsAhead):
        return runner.draft_ahead(token, count)
    drafted = Scores()
    for _ in range(count):
        step = runner.forward([token], is_draft=True, want=Want.CERTAINTIES)
        token = step.tokens[0]
        drafted.extend(step)
    return drafted


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


def check_experts(draft: Draft, loaded: LoadedModel) -> None:
    """Raise `UsageError` where a draft goes to more experts than the model, or to some where it has none."""
    most = loaded.experts_per_token
    if draft.experts is None or draft.experts <= most:
        return
    if not most:
        raise UsageError(
            f"The draft goes to {experts_a_token(draft.experts)}, but {loaded.name} is no mixture of experts that is "
            "known here. Leave `experts` out."
        )
    raise UsageError(
        f"The draft goes to {experts_a_token(draft.experts)}, and {loaded.name} itself to {most}. Give `experts` 1 to "
        f"{most}, or same."
    )


def check_room(needed: int, context_length: int) -> None:
    """Raise `PromptError` where ``needed`` positions exceed the model's context."""
    if needed > context_length:
        raise PromptError(
            f"prompt and answer need {needed} positions; the model's context has {context_length}. "
            "Use shorter prompts or a smaller `max_new_tokens`."
        )


def scored(logits: Tensor, want: Want, runner: Runner, tokens: Sequence[int], *, is_draft: bool = False) -> Scores:
    """What is wanted of logits [positions, vocabulary], those of the runner's last pass, which was over ``tokens``.

    Raises as `Runner.forward`.
    """
    if want is Want.LOGITS:
        return Scores(logits=logits)
    rows: list[list[float]] = most_probable(logits, want).tolist()  # waits for the device once
    scores = as_scores(rows, want)
    if not is_draft:
        check_chosen(tokens, scores.tokens, [row[1] for row in rows], runner)
    return scores


def most_probable(logits: Tensor, want: Want) -> Tensor:
    """The most probable tokens by logits [positions, vocabulary], for `as_scores`; float64 [positions, columns].

    Columns: the token, its logit, and where they are wanted the numbers of a `Certainty`.
    """
    largest, tokens = logits.max(-1, keepdim=True)  # a NaN is the largest of all
    columns = [tokens, largest]
    if want is Want.CERTAINTIES:
        below = (logits.float() - largest.float()).clamp_(min=_LEAST)
        shares = below.exp()
        total = shares.sum(-1, keepdim=True)
        second = logits.scatter(-1, tokens, -inf).amax(-1, keepdim=True)
        margin = (largest.float() - second.float()).clamp(max=MOST_MARGIN)
        entropy = total.log() - (shares * below).sum(-1, keepdim=True) / total
        columns += [1 / total, margin, entropy.clamp(min=0.0)]
    return torch.cat([column.double() for column in columns], -1)


def as_scores(rows: Sequence[Sequence[float]], want: Want) -> Scores:
    """What `most_probable` found, once it is off the device."""
    certainties = [Certainty(*row[2:]) for row in rows] if want is Want.CERTAINTIES else []
    return Scores([int(row[0]) for row in rows], certainties)


def check_logits(logits: Tensor, runner: Runner, count: int | None = None) -> None:
    """Raise `NonFiniteError` unless logits [positions, vocabulary] of the runner's last pass are numbers.

    Minus infinity is one where others are not: a model's way to rule tokens out. ``count``: of the first ones alone.
    """
    _check_largest(logits.max(-1).values.tolist(), runner, count)  # a NaN is the largest of all


def check_chosen(tokens: Sequence[int], chosen: Sequence[int], largest: Sequence[float], runner: Runner) -> None:
    """Raise `NonFiniteError` as `Runner.forward` does of a pass over ``tokens``.

    ``chosen`` after each, and its ``largest`` logit, or the logarithm of the normaliser.
    """
    _check_largest(largest, runner, 1 + common_prefix(tokens[1:], chosen))


def _check_largest(largest: Sequence[float], runner: Runner, count: int | None) -> None:
    for place, value in enumerate(largest[:count]):
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
    first = prefill(runner, tokens[:1])[None]
    check_logits(first, runner)
    logits = torch.cat((first, runner.forward(tokens[1:]).logits)) if len(tokens) > 1 else first
    check_logits(logits[1:], runner)
    check_differ(logits, runner)
