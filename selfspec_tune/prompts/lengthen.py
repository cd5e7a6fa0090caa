"""Prompts with more context before them: other prompts of the same source, never a repetition.

For measuring how decoding behaves as the context grows. What precedes a prompt is real text
of the kind that the source holds; the prompt itself stays whole, and stays last.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.prompt import Prompt
from selfspec_tune.prompts.render import Template, Tokenizer, render

HOW_LENGTHENED = (
    "Before each prompt stand other prompts of its source, in a seeded order that begins after it, joined by blank "
    "lines within the same user turn. The farthest is cut at its beginning, between words, so that the prompt, "
    "template included, has at most the stated number of tokens and lacks at most a word of it. No text occurs twice "
    "in a prompt, and each context ends with the whole of the next shorter one. The answer may change with the context."
)
_SEPARATOR = "\n\n"
_WORD = re.compile(r"\S+")


def documents_for(prompt: Prompt, source: Sequence[Prompt]) -> list[Prompt]:
    """What may precede ``prompt``, nearest first: the source's other prompts, beginning after its own place."""
    places = [place for place, other in enumerate(source) if other.hash == prompt.hash]
    start = places[0] + 1 if places else 0
    return [other for other in [*source[start:], *source[:start]] if other.hash != prompt.hash]


def lengthened(
    prompt: Prompt,
    documents: Sequence[Prompt],
    num_tokens: int,
    tokenizer: Tokenizer,
    template: Template = Template.AUTO,
) -> list[int]:
    """Token ids of ``prompt`` after as much of ``documents`` (nearest first) as fits in ``num_tokens``.

    Raises `PromptError` where the prompt alone is longer, or where all documents do not suffice.
    """

    def tokens(context: Sequence[str]) -> list[int]:
        text = _SEPARATOR.join([*reversed(context), prompt.text])
        return render(replace(prompt, text=text), tokenizer, template)

    texts = [document.text.strip() for document in documents]
    if len(tokens([])) > num_tokens:
        raise PromptError(f"Prompt {prompt.id} alone has more than {num_tokens} tokens; expected at most that many.")
    whole = _most(len(texts), lambda count: len(tokens(texts[:count])) <= num_tokens)
    if whole == len(texts):
        available = len(tokens(texts))
        if available == num_tokens:
            return tokens(texts)
        raise PromptError(
            f"Prompt {prompt.id} has {available} tokens with all other prompts of its source before it; {num_tokens} "
            "were asked for, and nothing is repeated. Lower `sweep_values`, or give `prompts` with more text."
        )
    context, farthest = texts[:whole], texts[whole]
    starts = [match.start() for match in _WORD.finditer(farthest)]

    def with_words(count: int) -> list[int]:
        return tokens([*context, farthest[starts[-count] :]] if count else context)

    return with_words(_most(len(starts), lambda count: len(with_words(count)) <= num_tokens))


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count up to ``limit`` that fits, where 0 does; tries no more than twice as many."""
    bound = 1
    while bound < limit and fits(bound):
        bound *= 2
    return bisect_left(range(1, min(bound, limit) + 1), x=True, key=lambda count: not fits(count))
