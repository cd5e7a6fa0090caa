from __future__ import annotations

import random
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from selfspec_tune.errors import PromptError, UsageError
from selfspec_tune.prompts import Prompt, Template, fit_context, fit_vocabulary, render
from tests import kit

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
    with pytest.raises(UsageError, match="`template` raw"):
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
    with pytest.raises(UsageError, match=r"chat template.*`template` raw"):
        render(Prompt("test/4", "chat", "so", history), WordTokenizer(None), template)


def test_raw_renders_a_single_turn_alone() -> None:
    assert render(Prompt("test/4", "chat", "so", ()), WordTokenizer(None), Template.RAW) == [BOS, 12]
    with pytest.raises(PromptError, match="test/4 is a conversation of 2 turns"):
        render(Prompt("test/4", "chat", "so", (SYSTEM,)), WordTokenizer("<s>"), Template.RAW)


def processed(pattern: str, *, chat: bool = False) -> Any:
    """The kit's tokenizer, whose post-processor writes ``pattern`` around a text."""
    tokenizer = kit.tiny_tokenizer(128, chat=chat)
    special = [("<s>", kit.BOS), ("</s>", kit.EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("pattern", ["$A </s>", "<s> $A </s>", "<s> $A </s> </s>", "<s> <s> $A </s> <s>"])
def test_what_a_tokenizer_appends_is_taken_off(pattern: str) -> None:
    tokenizer = processed(pattern)
    bare = tokenizer(PROMPT.text, add_special_tokens=False)["input_ids"]
    before = [kit.BOS] if pattern.startswith("<s>") else []
    assert tokenizer(PROMPT.text)["input_ids"] != before + bare
    assert render(PROMPT, tokenizer) == before + bare


@pytest.mark.parametrize("text", ["one</s>", "</s>", "a</s>b</s></s>", "<s>one</s>"])
def test_an_eos_that_the_prompt_itself_ends_with_stays(text: str) -> None:
    tokenizer = processed("<s> $A </s>")
    expected = [kit.BOS, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert render(Prompt("test/4", "chat", text), tokenizer, Template.RAW) == expected[text.startswith("<s>") :]
    assert expected[-1] == kit.EOS


def test_nothing_is_appended_to_a_chat(tmp_path: Path) -> None:
    plain, processing = kit.tiny_tokenizer(128, chat=True), processed("<s> $A </s>", chat=True)
    assert render(PROMPT, processing) == render(PROMPT, plain)


def test_templates_that_ask_the_clock_are_told_the_date_of_the_study() -> None:
    tokenizer = kit.tiny_tokenizer(128, chat=True)
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }} {{ date_string }} {{ messages[0]['content'] }}"
    pinned = render(PROMPT, tokenizer, date="03 Feb 2025")
    assert tokenizer.decode(pinned) == f"2025-02-03 03 Feb 2025 {PROMPT.text}"
    assert str(datetime.now().year) not in tokenizer.decode(render(PROMPT, tokenizer)).replace(PROMPT.text, "")


LETTERS = "['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']"


@pytest.mark.parametrize(
    "chance", [f"{{% for i in range(9) %}}{{{{ {LETTERS}|random }}}}{{% endfor %}}", "{{ lipsum(1) }}"]
)
def test_templates_that_pick_at_random_pick_the_same_each_time(chance: str) -> None:
    tokenizer = kit.tiny_tokenizer(128, chat=True)
    tokenizer.chat_template = chance + " {{ messages[0]['content'] }}"
    random.seed(1)
    first, after = render(PROMPT, tokenizer), random.random()
    random.seed(2)
    assert render(PROMPT, tokenizer) == first
    assert random.random() != after, "the chance of the rest of the program goes on as before"
    other = Prompt("test/5", "chat", "hello here")
    assert render(other, tokenizer)[:5] != first[:5]


@pytest.mark.parametrize("printed", ["{{ raise_exception }}", "{{ messages.copy }}", "{{ messages|map('upper') }}"])
def test_a_template_that_prints_where_objects_lie_is_refused(printed: str) -> None:
    tokenizer = kit.tiny_tokenizer(128, chat=True)
    tokenizer.chat_template = printed + " {{ messages[0]['content'] }}"
    with pytest.raises(UsageError, match=r"test/1 would have other tokens each time\. Use `template` raw"):
        render(PROMPT, tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    render(Prompt("test/6", "chat", "What is <function f at 0x7f00>?"), tokenizer)


@pytest.mark.parametrize("date", ["tomorrow", "2024-07-26", "", 20240726])
def test_a_date_in_another_form_is_refused(date: Any) -> None:
    with pytest.raises(UsageError, match=f"{date!r}; expected a form like 26 Jul 2024"):
        render(PROMPT, kit.tiny_tokenizer(128, chat=True), date=date)


HOSTILE = {
    "syntax": "{% for message in messages %}",
    "refusal": "{{ raise_exception('only tools may speak') }}",
    "attribute": "{{ messages[7].content }}",
    "type": "{{ messages + 1 }}",
    "sandbox": "{{ messages.__class__.__mro__ }}{{ ''.__class__.__init__.__globals__ }}",
    "memory": "{{ 'a' * 2000000 }}",
    "format": "{{ '%02000000d' % 1 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_does_not_serve_names_the_model_and_the_way_out(name: str) -> None:
    tokenizer = kit.tiny_tokenizer(128, chat=True)
    tokenizer.name_or_path, tokenizer.chat_template = "someone/model", HOSTILE[name]
    with pytest.raises(UsageError, match=r"chat template of someone/model .*test/1.* Use `template` raw"):
        render(PROMPT, tokenizer)
    assert render(PROMPT, tokenizer, Template.RAW)


def test_a_template_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("selfspec_tune.prompts.render"), "_TEMPLATE_SECONDS", 0.2)
    tokenizer = kit.tiny_tokenizer(128, chat=True)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer.name_or_path, tokenizer.chat_template = "someone/model", loops
    with pytest.raises(UsageError, match=r"TimeoutError: it takes longer than 0.2 seconds\). Use `template` raw"):
        render(PROMPT, tokenizer)


def test_a_token_without_an_embedding_is_refused_by_prompt_and_token() -> None:
    tokenizer = kit.tiny_tokenizer(128)
    ids = tokenizer("a tune")["input_ids"]
    assert fit_vocabulary(ids, 128, tokenizer) == ids
    with pytest.raises(PromptError, match=r"Prompt qa/3 has the token '.' \(\d+\), .* embeddings for 5 tokens only"):
        fit_vocabulary(ids, 5, tokenizer, prompt_id="qa/3")


IN_PARTS = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endfor %}A:"
)


def test_a_template_that_reads_contents_as_parts_gets_parts() -> None:
    tokenizer = kit.tiny_tokenizer(128, chat=True)
    tokenizer.chat_template = IN_PARTS
    assert tokenizer.decode(render(PROMPT, tokenizer)).replace(" ", "") == f"{PROMPT.text}A:".replace(" ", "")


@pytest.mark.parametrize("template", ["assistant:", "{{ messages[0]['role'] }}", "{{ messages[0]['content'][:1] }}"])
def test_a_template_that_loses_the_prompt_is_refused(template: str) -> None:
    tokenizer = kit.tiny_tokenizer(128, chat=True)
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=r"leaves out the text of prompt test/1\. Use `template` raw"):
        render(PROMPT, tokenizer)
