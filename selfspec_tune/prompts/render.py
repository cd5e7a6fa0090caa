"""From a prompt to token ids, with or without the tokenizer's chat template."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol

from selfspec_tune.errors import ContextError, PromptError, UsageError
from selfspec_tune.prompts.prompt import Prompt

# Some chat templates print today's date unless they are told one: a fixed date keeps
# a prompt's tokens the same from day to day. Other templates ignore it.
TEMPLATE_DATE = "26 Jul 2024"


class Template(StrEnum):
    """How a prompt is wrapped: by the chat template, not at all, or whichever the tokenizer has."""

    AUTO = "auto"
    CHAT = "chat"
    RAW = "raw"


class Tokenizer(Protocol):
    """What `render` needs of a Hugging Face tokenizer."""

    @property
    def chat_template(self) -> Any: ...

    @property
    def bos_token_id(self) -> Any: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any: ...


def render(prompt: Prompt, tokenizer: Tokenizer, template: Template = Template.AUTO) -> list[int]:
    """Token ids of ``prompt``, ready for the model, never starting with two BOS tokens.

    ``auto`` uses the chat template (with the assistant's turn opened) if the tokenizer has
    one, else the bare text. Raises `UsageError` for ``chat`` without a chat template, and
    `PromptError` for a conversation without one or if no token comes out.
    """
    _check_conversation(prompt, tokenizer, template)
    if template is Template.CHAT and not tokenizer.chat_template:
        raise UsageError(
            "The chat template was asked for, but this model's tokenizer has none; "
            "use --template raw (or auto), or an instruction-tuned model."
        )
    if template is Template.RAW or not tokenizer.chat_template:
        encoded = tokenizer(prompt.text)
    else:
        encoded = tokenizer(_chat_text(prompt, tokenizer), add_special_tokens=False)
    ids = [int(token) for token in encoded["input_ids"]]
    if not ids:
        raise PromptError(f"Prompt {prompt.id} has no tokens; expected at least one.")
    return _single_bos(ids, tokenizer.bos_token_id)


def _check_conversation(prompt: Prompt, tokenizer: Tokenizer, template: Template) -> None:
    """Turns are rendered by a chat template alone, but for a single one whose bare text was asked for."""
    if prompt.history is None or (template is Template.RAW and not prompt.history):
        return
    if template is Template.RAW:
        raise PromptError(
            f"Prompt {prompt.id} is a conversation of {len(prompt.messages)} turns, which --template raw cannot "
            "render. Use --template auto, or give single texts."
        )
    if not tokenizer.chat_template:
        raise PromptError(
            f"Prompt {prompt.id} is a conversation, and this model's tokenizer has no chat template to render it by. "
            "Use an instruction-tuned model, give single texts, or, where each is a single turn, use --template raw."
        )


def _chat_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    text = tokenizer.apply_chat_template(
        prompt.messages, tokenize=False, add_generation_prompt=True, date_string=TEMPLATE_DATE
    )
    return str(text)


def _single_bos(ids: list[int], bos_token_id: int | None) -> list[int]:
    while bos_token_id is not None and ids[:2] == [bos_token_id, bos_token_id]:
        ids = ids[1:]
    return ids


def fit_context(ids: list[int], max_new_tokens: int, context_length: int, *, prompt_id: str = "(unnamed)") -> list[int]:
    """``ids`` unchanged if they leave room for ``max_new_tokens`` in ``context_length`` positions.

    Raises `ContextError` naming the prompt, its length and the limit otherwise: a prompt
    is never cut silently.
    """
    if len(ids) + max_new_tokens > context_length:
        raise ContextError(
            f"Prompt {prompt_id} has {len(ids)} tokens; with {max_new_tokens} new tokens it does not fit "
            f"the model's context of {context_length}. Leave the prompt out, lower --max-new-tokens, "
            "or use a model with a longer context."
        )
    return ids
