"""A loaded model that answers prompts and conversations, drafting as a search found best."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Unpack, cast, overload

from selfspec_tune.draft import Draft
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.source import common_prefix
from selfspec_tune.engine import Limits, Runner, Sampler
from selfspec_tune.engine import RawGeneration as Record
from selfspec_tune.engine.decoding import plain_rounds, speculative_rounds
from selfspec_tune.errors import ContextError, PromptError
from selfspec_tune.model.generation import Generation, Sampling, SamplingOptions
from selfspec_tune.model.stream import Stream
from selfspec_tune.models import LoadedModel
from selfspec_tune.prompts import Prompt, Template, fit_vocabulary, may_fit, render
from selfspec_tune.prompts.prompt import is_conversation, read_conversation

Messages = Sequence[Mapping[str, Any]]
_ID = "given"


def as_prompt(given: str | Messages) -> Prompt:
    """A text as it is, or messages that end with a user's. Raises `PromptError` for anything else."""
    if isinstance(given, str):
        return _checked(Prompt(_ID, _ID, given))
    if not is_conversation(given):
        raise PromptError(
            f"The prompt is {given!r:.60}; expected a text, or messages such as "
            '[{"role": "user", "content": "Hello"}].'
        )
    turns = read_conversation(given, where="The messages")
    if len(turns) < len(given):
        raise PromptError("The last of the messages is not the user's; expected one of the user after it.")
    *history, (_, text) = turns
    return _checked(Prompt(_ID, _ID, text, tuple(history)))


def _checked(prompt: Prompt) -> Prompt:
    """The prompt. Raises `PromptError` where it is no text that a tokenizer reads."""
    for message in prompt.messages:
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"The prompt holds {message['content'][error.start]!a} at character {error.start + 1}, which is half "
                "of a character, or a byte that is no UTF-8. Convert it to UTF-8."
            ) from None
    return prompt


def tokens_of(given: str | Messages, loaded: LoadedModel, template: Template) -> list[int]:
    """Token ids, with room in the model's context for one more at least. Raises `PromptError`."""
    prompt = as_prompt(given)
    if not may_fit(prompt, loaded.context_length):
        raise _too_long("more characters than could fit", loaded)
    tokens = render(prompt, loaded.tokenizer, template, date=f"{datetime.now():%d %b %Y}")
    fit_vocabulary(tokens, loaded.vocabulary_size, loaded.tokenizer, prompt_id=_ID)
    if len(tokens) >= loaded.context_length:
        raise _too_long(f"{len(tokens)} tokens", loaded)
    return tokens


def _too_long(length: str, loaded: LoadedModel) -> ContextError:
    return ContextError(
        f"The prompt has {length}, and the model's context {loaded.context_length} tokens: no room is left for an "
        "answer. Shorten it, begin a new conversation, or use a model with a longer context."
    )


class Model:
    """Made by `load`. One answer at a time: beginning another ends one that is still being streamed.

    It belongs to one thread: a second that asks while an answer is computed is refused with `UsageError`.

    Attributes:
        draft: how tokens are drafted; None: every token is decoded plainly.
        costs: seconds of the steps that a cost-aware policy weighs; None for other policies.
        notes: what was said while it was loaded.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        runner: Runner,
        draft: Draft | None,
        costs: StepCosts | None = None,
        template: Template = Template.AUTO,
        notes: Sequence[str] = (),
    ) -> None:
        self.draft = draft
        self.costs = costs
        self.notes = tuple(notes)
        self._loaded = loaded
        self._runner = runner
        self._template = template
        self._cached: list[int] = []  # what the runner's cache holds of the last answer's tokens, prompt included
        self._stream: weakref.ref[Stream] | None = None

    @property
    def name(self) -> str:
        """What was asked for."""
        return self._loaded.name

    @property
    def runner(self) -> str:
        """The engine that decodes: native, graphs, fast or reference."""
        return self._runner.name

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and answer together."""
        return self._loaded.context_length

    def describe(self) -> str:
        """The model and how it drafts, in one line."""
        how = "no drafts" if self.draft is None else f"drafts: skip {self.draft.describe()}"
        return f"{self._loaded.name_and_dtype} on {self._loaded.device}, {self.runner} runner: {how}"

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special ones left out."""
        found = self._loaded.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(found)

    @overload
    def generate(
        self, prompt: str | Messages, *, compare: bool = False, **options: Unpack[SamplingOptions]
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: list[str] | list[Messages], *, compare: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[Generation]: ...

    def generate(
        self,
        prompt: str | Messages | list[str] | list[Messages],
        *,
        compare: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Generation | list[Generation]:
        """Answer a text or messages, or each of a list of these, one after another.

        A text goes through the model's chat template where it has one. With ``compare`` each is decoded plainly too, in
        turns before and after, and `Generation.speedup` tells the ratio. ``options``: see `Sampling`.

        Raises:
            PromptError: a prompt has no tokens, is no prompt at all, or is too long for the model's context.
            UsageError: an option is not known, or its value means nothing.
        """
        sampling = Sampling.of(options)
        is_several = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], Mapping))
        given = cast("list[str | Messages]", prompt if is_several else [prompt])
        several = [tokens_of(one, self._loaded, self._template) for one in given]
        answers = [
            self._answer(tokens, sampling, is_compared=compare, plain_first=bool(number % 2))
            for number, tokens in enumerate(several)
        ]
        return answers if is_several else answers[0]

    def stream(self, prompt: str | Messages, **options: Unpack[SamplingOptions]) -> Stream:
        """Answer piece by piece; arguments and errors as in `generate`, the errors at once."""
        sampling = Sampling.of(options)
        return self._begin(tokens_of(prompt, self._loaded, self._template), sampling, self.draft)

    def chat(self, system: str | None = None) -> Chat:
        """A conversation, whose ``system`` message comes before all others."""
        return Chat(self, system)

    def plainly(
        self, prompt: str | Messages, beside: Generation | None = None, **options: Unpack[SamplingOptions]
    ) -> Generation:
        """Answer without drafting: what an answer is compared with.

        ``beside``: the last answer, to the same prompt. What was cached for it is for this one, in the same bits.
        """
        known = 0 if beside is None else beside.prompt_tokens - beside.prefilled_tokens
        tokens = tokens_of(prompt, self._loaded, self._template)
        return self._begin(tokens, Sampling.of(options), None, most_known=known).read()

    def _go_on(
        self, messages: Messages, sampling: Sampling, finished: Callable[[Generation], None] = lambda _: None
    ) -> Stream:
        """Answer ``messages`` from what is cached of the last answer; ``finished`` is told of this one's end."""
        tokens = tokens_of(messages, self._loaded, self._template)
        return self._begin(tokens, sampling, self.draft, most_known=len(tokens), finished=finished)

    def _answer(self, tokens: list[int], sampling: Sampling, *, is_compared: bool, plain_first: bool) -> Generation:
        sampling = sampling.seeded()
        if not is_compared:
            return self._begin(tokens, sampling, self.draft).read()
        plain = self._begin(tokens, sampling, None).read() if plain_first else None
        answer = self._begin(tokens, sampling, self.draft).read()
        return replace(answer, plain=plain or self._begin(tokens, sampling, None).read())

    def _begin(
        self,
        tokens: list[int],
        sampling: Sampling,
        draft: Draft | None,
        *,
        most_known: int = 0,
        finished: Callable[[Generation], None] = lambda _: None,
    ) -> Stream:
        """An answer to a prompt's ``tokens``; of its cached beginning, ``most_known`` tokens at most are not run."""
        self._end_stream()
        sampling = sampling.seeded()
        sampler = Sampler(
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.seed or 0,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
        )
        room = self._loaded.context_length - len(tokens)
        limits = Limits(min(sampling.max_new_tokens, room), frozenset(self._loaded.eos_token_ids))
        record, known = Record(), min(most_known, common_prefix(self._cached, tokens))
        if draft is None:
            rounds = plain_rounds(self._runner, tokens, limits, sampler, record, known=known)
        else:
            rounds = speculative_rounds(self._runner, tokens, limits, sampler, draft, self.costs, record, known=known)
        self._cached = []

        def ended(answer: Generation) -> None:
            self._note_cached(tokens, record.tokens)
            finished(answer)

        stream = Stream(rounds, record, self.text_of, sampling, limits, len(tokens), ended)
        self._stream = weakref.ref(stream)
        return stream

    def _end_stream(self) -> None:
        stream = None if self._stream is None else self._stream()
        if stream is not None:
            stream.close()

    def _note_cached(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """What the cache holds after an answer; its last token was perhaps never run, or by the draft alone."""
        self._cached = [*prompt, *answer][:-1][: self._runner.length] if answer else []


class Chat:
    """A conversation with a `Model`. Each turn goes on from the cache: only what is new of its tokens is run.

    Attributes:
        messages: the turns so far, as chat templates take them.
    """

    def __init__(self, model: Model, system: str | None = None) -> None:
        self.messages: list[dict[str, str]] = [] if system is None else [_turn("system", system)]
        self._model = model

    def send(self, text: str, **options: Unpack[SamplingOptions]) -> Generation:
        """Say ``text``; the whole answer. ``options`` and errors as in `Model.generate`."""
        return self.stream(text, **options).read()

    def stream(self, text: str, **options: Unpack[SamplingOptions]) -> Stream:
        """Say ``text``; the answer piece by piece. What is read of it, cut or not, is the assistant's turn."""
        said = _turn("user", text)

        def note(answer: Generation) -> None:
            if answer.tokens:
                self.messages += [said, _turn("assistant", answer.text)]

        return self._model._go_on([*self.messages, said], Sampling.of(options), note)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
