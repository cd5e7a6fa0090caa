"""A loaded model that answers prompts and conversations, drafting as a search found best."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, Unpack, cast, overload

from selfspec_tune.checks import check_kind
from selfspec_tune.draft import Draft
from selfspec_tune.draft.costs import StepCosts
from selfspec_tune.draft.source import common_prefix
from selfspec_tune.engine import Limits, Runner, Sampler
from selfspec_tune.engine import RawGeneration as Record
from selfspec_tune.engine.decoding import plain_rounds, speculative_rounds
from selfspec_tune.errors import ContextError, PromptError, UsageError
from selfspec_tune.model.generation import AnswerOptions, Generation, SamplingOptions
from selfspec_tune.model.stream import Stream
from selfspec_tune.models import LoadedModel
from selfspec_tune.prompts import Prompt, Template, fit_vocabulary, may_fit, render
from selfspec_tune.prompts.prompt import is_list, read_conversation

Messages = Sequence[Mapping[str, Any]]
Given = TypeVar("Given", bound=str | Messages)  # a list of any kind of these; one of both would take no other list
_ID = "given"
_MESSAGE = '{"role": "user", "content": "Hello"}'
_KEYS = ({"role", "from"}, {"content", "value"})  # of messages; the second ones as data sets have them


def as_prompt(given: str | Messages) -> Prompt:
    """A text as it is, or messages that end with a user's. Raises `PromptError` for anything else."""
    if isinstance(given, str):
        return _checked(Prompt(_ID, _ID, given))
    if not is_list(given) or not given or not isinstance(given[0], Mapping):
        raise PromptError(f"The prompt is {given!r:.60}; expected a text, or messages such as [{_MESSAGE}].")
    for number, message in enumerate(given, 1):
        if not isinstance(message, Mapping) or not all(message.keys() & names for names in _KEYS):
            raise PromptError(f"Message {number} is {message!r:.60}; expected one such as {_MESSAGE}.")
    turns = read_conversation(given, where="The messages", advice="Give messages of text alone.")
    if len(turns) < len(given):
        raise PromptError("The last of the messages is not the user's; expected one of the user after it.")
    if "system" in [role for role, _ in turns[1:]]:
        raise PromptError("A message of the system comes after others; expected one at most, before all others.")
    *history, (_, text) = turns
    return _checked(Prompt(_ID, _ID, text, tuple(history)))


def _checked(prompt: Prompt) -> Prompt:
    """The prompt. Raises `PromptError` where it is empty, or no text that a tokenizer reads."""
    if not prompt.text:
        raise PromptError("The prompt is empty; expected a text of one character or more.")
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

    It serves one thread at a time. Another that asks is refused with `UsageError` until the first one's answer has
    come whole, its stream was closed, or that thread has ended. After an error or Ctrl-C in the midst of an answer the
    model answers as before.

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
        self._beginning = threading.Lock()

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
        """The text of token ids, special ones left out. Raises `UsageError` for what is no list of token ids."""
        try:
            ids = list(tokens)
            found = self._loaded.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        except (OverflowError, TypeError):
            raise UsageError(f"The tokens are {tokens!r:.60}; expected a list of token ids.") from None
        return str(found)

    @overload
    def generate(
        self, prompt: list[Given], *, compare: bool = False, **options: Unpack[SamplingOptions]
    ) -> list[Generation]: ...

    @overload
    def generate(
        self, prompt: str | Messages, *, compare: bool = False, **options: Unpack[SamplingOptions]
    ) -> Generation: ...

    def generate(
        self,
        prompt: str | Messages | list[Given],
        *,
        compare: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> Generation | list[Generation]:
        """Answer a text or messages, or each of a list of these, one after another.

        A text goes through the model's chat template where it has one. With ``compare`` each is decoded plainly too, in
        turns before and after, and `Generation.speedup` tells the ratio. ``options``: see `AnswerOptions`.

        Raises:
            PromptError: a prompt has no tokens, is no prompt at all, or is too long for the model's context.
            UsageError: an option is not known, or its value means nothing.
        """
        check_kind("compare", compare, bool)
        sampling = AnswerOptions.of(options)
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
        sampling = AnswerOptions.of(options)
        return self._begin(tokens_of(prompt, self._loaded, self._template), sampling, self.draft)

    def chat(self, system: str | None = None) -> Chat:
        """A conversation, whose ``system`` message comes before all others. Raises `UsageError` where it is no text."""
        check_kind("system", system, str | None)
        return Chat(self, system)

    def plainly(
        self, prompt: str | Messages, beside: Generation | None = None, **options: Unpack[SamplingOptions]
    ) -> Generation:
        """Answer without drafting: what an answer is compared with.

        ``beside``: the last answer, to the same prompt. What was cached for it is for this one, in the same bits.
        """
        check_kind("beside", beside, Generation | None)
        known = 0 if beside is None else beside.prompt_tokens - beside.prefilled_tokens
        tokens = tokens_of(prompt, self._loaded, self._template)
        return self._begin(tokens, AnswerOptions.of(options), None, most_known=known).read()

    def _go_on(
        self, messages: Messages, sampling: AnswerOptions, finished: Callable[[Generation], None] = lambda _: None
    ) -> Stream:
        """Answer ``messages`` from what is cached of the last answer; ``finished`` is told of this one's end."""
        tokens = tokens_of(messages, self._loaded, self._template)
        return self._begin(tokens, sampling, self.draft, most_known=len(tokens), finished=finished)

    def _answer(
        self, tokens: list[int], sampling: AnswerOptions, *, is_compared: bool, plain_first: bool
    ) -> Generation:
        sampling = sampling.seeded()
        if not is_compared:
            return self._begin(tokens, sampling, self.draft).read()
        plain = self._begin(tokens, sampling, None).read() if plain_first else None
        answer = self._begin(tokens, sampling, self.draft).read()
        return replace(answer, plain=plain or self._begin(tokens, sampling, None).read())

    def _begin(
        self,
        tokens: list[int],
        sampling: AnswerOptions,
        draft: Draft | None,
        *,
        most_known: int = 0,
        finished: Callable[[Generation], None] = lambda _: None,
    ) -> Stream:
        """An answer to a prompt's ``tokens``; of its cached beginning, ``most_known`` tokens at most are not run."""
        sampling = sampling.seeded()
        sampler = Sampler.of(sampling, sampling.seed or 0)
        room = self._loaded.context_length - len(tokens)
        limits = Limits(min(sampling.max_new_tokens, room), frozenset(self._loaded.eos_token_ids))
        record = Record()

        def ended(answer: Generation) -> None:
            self._note_cached(tokens, record.tokens)
            finished(answer)

        with self._beginning:
            if self._stream is not None and (earlier := self._stream()) is not None:
                earlier.give_way()
            known = min(most_known, common_prefix(self._cached, tokens))
            if draft is None:
                rounds = plain_rounds(self._runner, tokens, limits, sampler, record, known=known)
            else:
                rounds = speculative_rounds(
                    self._runner, tokens, limits, sampler, draft, self.costs, record, known=known
                )
            self._cached = []
            stream = Stream(rounds, record, self.text_of, sampling, limits, len(tokens), ended)
            self._stream = weakref.ref(stream)
        return stream

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

        return self._model._go_on([*self.messages, said], AnswerOptions.of(options), note)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
