"""What a runtime answers, and how a bench with ``runtime`` asks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from selfspec_tune.errors import SelfSpecError
from selfspec_tune.prompts import Prompt

if TYPE_CHECKING:
    from selfspec_tune.measure.workload import WorkItem


class NotComparableError(SelfSpecError):
    """A runtime's answer names not all of its tokens."""


@dataclass(frozen=True, slots=True)
class RuntimeAnswer:
    """What a runtime made of a prompt: greedy ``tokens``, their ``logprobs`` where it gives them, and its counts."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A greedy answer of ``num_tokens``.

    ``tokens``: as far as the runtime names them; ``logprobs``: of each, by its own softmax, where it gives them.
    ``drafted`` and ``accepted`` are its own counts. ``seconds``: of decoding, without the prompt. ``prompt_seconds``:
    until the first ``first_tokens`` are there, 0 where these count as decoded.
    """

    text: str
    num_tokens: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    drafted: int
    accepted: int
    seconds: float
    prompt_seconds: float
    first_tokens: int = 0


class TimedRuntime(Protocol):
    """A target and its exported draft in one runtime, which answers one prompt at a time.

    Attributes:
        name: of the runtime, with its version.
        target: the target's name.
        measured: beside prompts and skip set, what answers must agree in to be one measurement.
    """

    name: str
    target: str
    measured: Mapping[str, Any]

    def read(self, prompt: Prompt) -> WorkItem:
        """The prompt by the target's own tokenizer. Raises `PromptError` where the answer would not fit."""

    def answer(self, item: WorkItem, *, with_draft: bool) -> Completion:
        """The greedy answer, by the target alone or with its draft."""
