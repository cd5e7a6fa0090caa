from __future__ import annotations

from typing import Any

import pytest

from selfspec_tune.errors import PromptError, UsageError
from selfspec_tune.prompts import Prompt, Template, fit_context, render

PROMPT = Prompt("test/1", "chat", "hello there")
BOS = 1


class WordTokenizer:
    """One id a word; prepends BOS when asked for special tokens, as Llama's tokenizer does."""

    def __init__(self, chat_template: str | None, *, bos_token_id: int | None = BOS) -> None:
        self.chat_template = chat_template
        self.bos_token_id = bos_token_id
        self.template_options: dict[str, Any] = {}

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [BOS if word == "<s>" else 10 + len(word) for word in text.split()]
        return {"input_ids": [BOS, *ids] if add_special_tokens and self.bos_token_id else ids}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        self.template_options = options
        assert self.chat_template is not None
        opened = " assistant:" if options["add_generation_prompt"] else ""
        return self.chat_template + " user: " + messages[0]["content"] + opened


def test_auto_uses_the_chat_template_where_there_is_one() -> None:
    tokenizer = WordTokenizer("<s>")
    assert render(PROMPT, tokenizer) == [BOS, 15, 15, 15, 20]
    assert render(PROMPT, tokenizer) == render(PROMPT, tokenizer, Template.CHAT)


def test_auto_takes_the_bare_text_where_there_is_no_chat_template() -> None:
    assert render(PROMPT, WordTokenizer(None)) == [BOS, 15, 15]


def test_raw_leaves_the_chat_template_out() -> None:
    assert render(PROMPT, WordTokenizer("<s>"), Template.RAW) == [BOS, 15, 15]


def test_chat_without_a_chat_template_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match="--template raw"):
        render(PROMPT, WordTokenizer(None), Template.CHAT)


def test_a_chat_template_that_writes_bos_does_not_double_it() -> None:
    assert render(PROMPT, WordTokenizer("<s>")).count(BOS) == 1
    assert render(PROMPT, WordTokenizer("<s> <s>")).count(BOS) == 1


def test_a_raw_text_that_begins_with_bos_does_not_double_it() -> None:
    prompt = Prompt("test/2", "chat", "<s> hello")
    assert render(prompt, WordTokenizer(None), Template.RAW) == [BOS, 15]


def test_a_template_that_prints_the_date_prints_the_same_one_every_day() -> None:
    tokenizer = WordTokenizer("<s>")
    render(PROMPT, tokenizer)
    assert tokenizer.template_options["date_string"] == "26 Jul 2024"
    assert tokenizer.template_options["add_generation_prompt"] is True


def test_a_prompt_without_tokens_is_refused_by_name() -> None:
    with pytest.raises(PromptError, match="test/3 has no tokens"):
        render(Prompt("test/3", "chat", " "), WordTokenizer(None, bos_token_id=None))


def test_a_prompt_that_just_fits_the_context_passes_unchanged() -> None:
    assert fit_context([5, 6, 7], 61, 64) == [5, 6, 7]


def test_a_prompt_too_long_for_the_context_is_refused_with_numbers() -> None:
    with pytest.raises(PromptError, match=r"Prompt qa/9 has 3 tokens; with 62 .* context of 64"):
        fit_context([5, 6, 7], 62, 64, prompt_id="qa/9")


# Conversations


SYSTEM = ("system", "be brief")


class ChatTokenizer(WordTokenizer):
    """Writes every turn as role and content."""

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return " ".join(f"{message['role']} {message['content']}" for message in messages)


def test_every_turn_of_a_conversation_is_rendered_by_the_chat_template() -> None:
    talk = Prompt("test/4", "chat", "so", (SYSTEM, ("user", "hi"), ("assistant", "hello")))
    words = ["system", "be", "brief", "user", "hi", "assistant", "hello", "user", "so"]
    assert render(talk, ChatTokenizer("<s>")) == [10 + len(word) for word in words]


@pytest.mark.parametrize("template", [Template.AUTO, Template.CHAT])
@pytest.mark.parametrize("history", [(), (SYSTEM,)])
def test_a_conversation_without_a_chat_template_is_refused(template: Template, history: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=r"chat template.*--template raw"):
        render(Prompt("test/4", "chat", "so", history), WordTokenizer(None), template)


def test_raw_renders_a_single_turn_alone() -> None:
    assert render(Prompt("test/4", "chat", "so", ()), WordTokenizer(None), Template.RAW) == [BOS, 12]
    with pytest.raises(PromptError, match="test/4 is a conversation of 2 turns"):
        render(Prompt("test/4", "chat", "so", (SYSTEM,)), WordTokenizer("<s>"), Template.RAW)
