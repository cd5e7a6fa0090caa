"""Prompts too long for a model's context: found before they are tokenised where that is sure, left out and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from selfspec_tune.errors import ContextError
from selfspec_tune.prompts.prompt import Prompt

# More characters than a token has on average in any text that a tokenizer serves (long runs of spaces come nearest).
# Tokenising what is far longer would take minutes and gigabytes, only to learn that it does not fit.
CHARACTERS_A_TOKEN = 64

_NAMED = 3  # of those left out
Read = TypeVar("Read")


def may_fit(prompt: Prompt, context_length: int) -> bool:
    """Whether the prompt could fit into so many tokens, as far as its number of characters tells."""
    return _num_characters(prompt) <= CHARACTERS_A_TOKEN * context_length


def check_characters(prompt: Prompt, context_length: int) -> None:
    """Raises `ContextError` where the prompt cannot fit by its number of characters."""
    if not may_fit(prompt, context_length):
        raise ContextError(
            f"Prompt {prompt.id} has {_num_characters(prompt)} characters; that does not fit the model's context of "
            f"{context_length} tokens. Leave the prompt out, or use a model with a longer context."
        )


def those_that_fit(
    prompts: Sequence[Prompt], read: Callable[[Prompt], Read], notice: Callable[[str], None]
) -> list[Read]:
    """What ``read`` makes of each prompt, without those that it finds too long; ``notice`` is told how many.

    Raises `ContextError` where none fits, about the shortest.
    """
    found: list[Read] = []
    too_long: list[tuple[int, str, ContextError]] = []
    for prompt in prompts:
        try:
            found.append(read(prompt))
        except ContextError as error:
            too_long.append((_num_characters(prompt), prompt.id, error))
    if too_long and not found:
        _, _, reason = min(too_long, key=lambda entry: entry[0])
        raise ContextError(f"None of {len(prompts)} prompts fits. {reason}" if len(prompts) > 1 else str(reason))
    if too_long:
        names = ", ".join(name for _, name, _ in too_long[:_NAMED]) + (", …" if len(too_long) > _NAMED else "")
        notice(
            f"{len(too_long)} of {len(prompts)} prompts do not fit the model's context with the new tokens, and are "
            f"left out: {names}"
        )
    return found


def _num_characters(prompt: Prompt) -> int:
    return sum(len(message["content"]) for message in prompt.messages)
