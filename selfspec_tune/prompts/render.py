"""From a prompt to token ids, with or without a chat template; what is too long for the context is left out."""

from __future__ import annotations

import random
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from types import FrameType, SimpleNamespace
from typing import Any, Protocol, TypeVar

from selfspec_tune.errors import ContextError, PromptError, UsageError
from selfspec_tune.prompts.prompt import Prompt
from selfspec_tune.requests import TEMPLATE_DATE

# More characters than a token has on average in any text that a tokenizer serves (long runs of spaces come nearest).
# Tokenising what is far longer would take minutes and gigabytes, only to learn that it does not fit.
CHARACTERS_A_TOKEN = 64
_NAMED = 3  # of those left out
Read = TypeVar("Read")
_DATE_FORMAT = "%d %b %Y"
_TEMPLATE_SECONDS = 20  # a template takes milliseconds; a hostile one may take years
_PART = "{'type': 'text'"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # of an object that a template prints: another in every process
_MOST_ADDED = 1_000_000  # characters that a template may add to a prompt


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


def render(
    prompt: Prompt, tokenizer: Tokenizer, template: Template = Template.AUTO, *, date: str = TEMPLATE_DATE
) -> list[int]:
    """Token ids of ``prompt``, ready for the model: never starting with two BOS tokens, nor ended by the tokenizer.

    ``auto`` uses the chat template (with the assistant's turn opened) if the tokenizer has
    one, else the bare text. ``date``: what a template prints as today's, such as "26 Jul 2024", so that the tokens
    are the same every day; what it picks at random depends on the prompt alone. Raises `UsageError` for ``chat``
    without a chat template or where the template fails, and `PromptError` for a conversation without one or if no
    token comes out.
    """
    _check_conversation(prompt, tokenizer, template)
    if template is Template.CHAT and not tokenizer.chat_template:
        raise UsageError(
            "The chat template was asked for, but this model's tokenizer has none; "
            "use `template` raw (or auto), or an instruction-tuned model."
        )
    if template is Template.RAW or not tokenizer.chat_template:
        ids = _open_ended(_ids(tokenizer(prompt.text)), _ids(tokenizer(prompt.text, add_special_tokens=False)))
    else:
        ids = _ids(tokenizer(_chat_text(prompt, tokenizer, date), add_special_tokens=False))
    if not ids:
        raise PromptError(f"Prompt {prompt.id} has no tokens; expected at least one.")
    return _single_bos(ids, tokenizer.bos_token_id)


def _check_conversation(prompt: Prompt, tokenizer: Tokenizer, template: Template) -> None:
    """Turns are rendered by a chat template alone, but for a single one whose bare text was asked for."""
    if prompt.history is None or (template is Template.RAW and not prompt.history):
        return
    if template is Template.RAW:
        raise PromptError(
            f"Prompt {prompt.id} is a conversation of {len(prompt.messages)} turns, which `template` raw cannot "
            "render. Use `template` auto, or give single texts."
        )
    if not tokenizer.chat_template:
        raise PromptError(
            f"Prompt {prompt.id} is a conversation, and this model's tokenizer has no chat template to render it by. "
            "Use an instruction-tuned model, or give single texts without a system message; where each is a single "
            "turn, `template` raw takes its text."
        )


def _ids(encoded: Any) -> list[int]:
    return [int(token) for token in encoded["input_ids"]]


def _open_ended(ids: list[int], bare: list[int]) -> list[int]:
    """``ids`` without what the tokenizer put after ``bare``, the text's own tokens: EOS, or a separator.

    A model that reads these answers another text, or nothing. What the text itself ends with stays.
    """
    for start in range(len(ids) - len(bare) + 1):
        if bare and ids[start : start + len(bare)] == bare:
            return ids[: start + len(bare)]
    return ids


def _chat_text(prompt: Prompt, tokenizer: Tokenizer, date: str) -> str:
    """The prompt in the chat template. Raises `UsageError`, naming the model, where the template does not serve."""
    today = _parsed(date)
    model = getattr(tokenizer, "name_or_path", "") or "this model"
    advice = "Use `template` raw, or mend the template in the model's directory."
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True, "date_string": date}
    try:
        with _bounded(_TEMPLATE_SECONDS), _clock_at(today), _chance_of(prompt.hash):
            text = str(tokenizer.apply_chat_template(prompt.messages, **options))
            if not _holds(text, prompt.text):  # a template of models that also see: it reads contents as parts
                text = str(tokenizer.apply_chat_template(_in_parts(prompt.messages), **options))
    except Exception as error:  # a template is a program of somebody else's
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise UsageError(
            f"The chat template of {model} fails on prompt {prompt.id} ({type(error).__name__}: {reason}). {advice}"
        ) from error
    if not _holds(text, prompt.text):
        raise UsageError(f"The chat template of {model} leaves out the text of prompt {prompt.id}. {advice}")
    if len(_ADDRESS.findall(text)) > len(_ADDRESS.findall(str(prompt.messages))):
        raise UsageError(
            f"The chat template of {model} prints where an object lies in memory, so that prompt {prompt.id} would "
            f"have other tokens each time. {advice}"
        )
    if len(text) > len(prompt.text) + _MOST_ADDED:
        raise UsageError(
            f"The chat template of {model} makes {len(text)} characters of prompt {prompt.id}, which has "
            f"{len(prompt.text)}; expected a few more than these. {advice}"
        )
    return text


def _holds(rendered: str, text: str) -> bool:
    """Whether any line of ``text`` stands in what was rendered; templates may strip and join lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    is_printed = _PART in rendered and _PART not in text  # a list of parts, as Python writes it
    return not is_printed and (not lines or any(line in rendered for line in lines))


def _in_parts(messages: list[dict[str, str]]) -> list[dict[str, Any]]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def _parsed(date: str) -> datetime:
    try:
        return datetime.strptime(date, _DATE_FORMAT)
    except (TypeError, ValueError):
        raise UsageError(f"The date for chat templates is {date!r}; expected a form like {TEMPLATE_DATE}.") from None


@contextmanager
def _clock_at(day: datetime) -> Iterator[None]:
    """Inside, transformers' ``strftime_now`` says ``day``: it takes no other function of that name for a template."""
    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils
    clock = module.datetime
    module.datetime = SimpleNamespace(now=lambda: day)
    try:
        yield
    finally:
        module.datetime = clock


@contextmanager
def _chance_of(seed: str) -> Iterator[None]:
    """Inside, Python's chance, by which templates pick at random, begins by ``seed``; then it goes on as before."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` inside after so long, in POSIX's main thread, whose timer is not in use."""
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and hasattr(signal, "setitimer")) or any(signal.getitimer(signal.ITIMER_REAL)):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it takes longer than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _single_bos(ids: list[int], bos_token_id: int | None) -> list[int]:
    while bos_token_id is not None and ids[:2] == [bos_token_id, bos_token_id]:
        ids = ids[1:]
    return ids


def fit_vocabulary(ids: list[int], size: int, tokenizer: Tokenizer, *, prompt_id: str = "(unnamed)") -> list[int]:
    """``ids`` unchanged if the model has an embedding for each, of ``size`` in all.

    Raises `PromptError` naming the prompt and the token otherwise.
    """
    largest = max(ids)
    if largest >= size:
        token = getattr(tokenizer, "convert_ids_to_tokens", str)(largest)
        raise PromptError(
            f"Prompt {prompt_id} has the token {token!r} ({largest}), and the model has embeddings for {size} tokens "
            "only: its tokenizer is another model's, or has tokens added that it was never trained on. Give the model "
            "its own tokenizer, or leave that token out of the prompts."
        )
    return ids


def fit_context(ids: list[int], max_new_tokens: int, context_length: int, *, prompt_id: str = "(unnamed)") -> list[int]:
    """``ids`` unchanged if they leave room for ``max_new_tokens`` in ``context_length`` positions.

    Raises `ContextError` naming the prompt, its length and the limit otherwise: a prompt
    is never cut silently.
    """
    if len(ids) + max_new_tokens > context_length:
        raise ContextError(
            f"Prompt {prompt_id} has {len(ids)} tokens; with {max_new_tokens} new tokens it does not fit "
            f"the model's context of {context_length}. Leave the prompt out, lower `max_new_tokens`, "
            "or use a model with a longer context."
        )
    return ids
