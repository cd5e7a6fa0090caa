from __future__ import annotations

from itertools import pairwise

import pytest

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts import Prompt, Template
from selfspec_tune.prompts.lengthen import documents_for, lengthened
from tests.kit import tiny_tokenizer

SOURCE = [Prompt(f"set/{n}", "chat", f"{n} begins. " + " ".join(f"word{n}x{i}" for i in range(20))) for n in range(12)]
TOKENIZER = tiny_tokenizer()


def text_of(num_tokens: int, prompt: Prompt = SOURCE[3], template: Template = Template.RAW) -> str:
    tokens = lengthened(prompt, documents_for(prompt, SOURCE), num_tokens, TOKENIZER, template)
    assert len(tokens) <= num_tokens
    return str(TOKENIZER.decode(tokens))


def length(text: str) -> int:
    return len(TOKENIZER(text)["input_ids"])


def test_documents_begin_after_the_prompt_and_do_not_hold_it() -> None:
    documents = documents_for(SOURCE[10], SOURCE)
    assert [document.id for document in documents[:3]] == ["set/11", "set/0", "set/1"]
    assert len(documents) == len(SOURCE) - 1
    assert SOURCE[10] not in documents


def test_the_prompt_is_last_and_whole_and_the_length_is_a_word_short_at_most() -> None:
    for wanted in (300, 500, 900, 1400):
        text = text_of(wanted)
        assert text.endswith(f"\n\n{SOURCE[3].text}")
        assert wanted - length(" word10x19\n\n") <= length(text) <= wanted


def test_nothing_is_repeated_and_longer_contexts_end_with_shorter_ones() -> None:
    texts = [text_of(wanted) for wanted in (300, 500, 900, 1400)]
    for shorter, longer in pairwise(texts):
        assert longer.endswith(shorter)
    words = [word for word in texts[-1].split() if word.startswith("word")]
    assert len(words) == len(set(words))


def test_a_chat_template_goes_around_everything() -> None:
    tokenizer = tiny_tokenizer(chat=True)
    tokens = lengthened(SOURCE[3], documents_for(SOURCE[3], SOURCE), 500, tokenizer, Template.CHAT)
    text = str(tokenizer.decode(tokens))
    assert text.startswith("user: ")
    assert text.endswith(f"{SOURCE[3].text}\nassistant: ")
    assert len(tokens) <= 500


def test_a_prompt_that_is_just_as_long_stays_alone() -> None:
    assert text_of(length(SOURCE[3].text)) == SOURCE[3].text


def test_too_little_text_and_too_long_a_prompt_are_refused() -> None:
    with pytest.raises(PromptError, match="with all other prompts of its source before it; 9000"):
        text_of(9000)
    with pytest.raises(PromptError, match="alone has more than 20 tokens"):
        text_of(20)


def test_all_documents_may_fit_exactly() -> None:
    documents = documents_for(SOURCE[3], SOURCE)
    everything = "\n\n".join([*(d.text for d in reversed(documents)), SOURCE[3].text])
    assert text_of(length(everything)) == everything
