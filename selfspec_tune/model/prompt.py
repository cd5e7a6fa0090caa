"""From what a user gives to the tokens that a model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from selfspec_tune.errors import ContextError, PromptError
from selfspec_tune.models import LoadedModel
from selfspec_tune.prompts import Prompt, Template, check_characters, fit_vocabulary, render
from selfspec_tune.prompts.conversations import is_conversation, read_conversation

Messages = Sequence[Mapping[str, Any]]
_ID = "given"


def as_prompt(given: str | Messages) -> Prompt:
    """A text as it is, or messages that end with a user's. Raises `PromptError` for anything else."""
    if isinstance(given, str):
        return Prompt(_ID, _ID, given)
    if not is_conversation(given):
        raise PromptError(
            f"The prompt is {given!r:.60}; expected a text, or messages such as "
            '[{"role": "user", "content": "Hello"}].'
        )
    turns = read_conversation(given, where="The messages")
    if len(turns) < len(given):
        raise PromptError("The messages end with the assistant's; expected the user's to be the last.")
    *history, (_, text) = turns
    return Prompt(_ID, _ID, text, tuple(history))


def tokens_of(given: str | Messages, loaded: LoadedModel, template: Template) -> list[int]:
    """Token ids, with room in the model's context for one more at least. Raises `PromptError`."""
    prompt = as_prompt(given)
    check_characters(prompt, loaded.context_length)
    tokens = render(prompt, loaded.tokenizer, template, date=f"{datetime.now():%d %b %Y}")
    fit_vocabulary(tokens, loaded.vocabulary_size, loaded.tokenizer, prompt_id=_ID)
    if len(tokens) >= loaded.context_length:
        raise ContextError(
            f"The prompt has {len(tokens)} tokens, and the model's context {loaded.context_length}: no room is left "
            "for an answer. Shorten it, begin a new conversation, or use a model with a longer context."
        )
    return tokens
