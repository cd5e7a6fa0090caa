"""A loaded model answers as plain decoding does, goes on from its cache, and says what it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_overloads, get_type_hints

import pytest
import torch

import selfspec_tune as st
from selfspec_tune.draft import Draft, DraftPolicy, PolicyKind, Source
from selfspec_tune.draft.ngram import NgramLookup
from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.engine import Limits, Sampler, autoregressive
from selfspec_tune.engine.runner import Scores, prefill
from selfspec_tune.errors import ContextError, PromptError, UsageError
from selfspec_tune.model.generation import Generation
from selfspec_tune.model.model import Model
from selfspec_tune.models import LoadedModel
from tests import kit
from tests.engine_kit import RUNNERS, STEPS, kind_of, load

PROMPTS = ["the sun and the sea", "on and on and on and on", "tin hat, red sand"]
DRAFT = Draft(
    SkipSet(4, (1,), (2,)), DraftPolicy(PolicyKind.FIXED, 3), sources=(NgramLookup(min_match=1, max_tokens=4),)
)
COST_AWARE = Draft(SkipSet(4, (), (1,)), DraftPolicy(PolicyKind.COST_AWARE, credit=4.0), sources=(NgramLookup(),))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request: pytest.FixtureRequest, tiny_llama_dir: Path) -> LoadedModel:
    return load(tiny_llama_dir, request.param)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Float32, with a chat template."""
    return load(kit.tiny_llama(tmp_path_factory.mktemp("chatty"), chat=True))


@pytest.fixture
def model(chatty: LoadedModel) -> Model:
    return Model(chatty, RUNNERS["fast"](chatty), DRAFT)


def plainly(loaded: LoadedModel, name: str, prompt: str, count: int) -> list[int]:
    tokens = loaded.tokenizer(prompt)["input_ids"]
    limits = Limits(count, frozenset(loaded.eos_token_ids))
    return autoregressive(RUNNERS[name](loaded), tokens, limits, Sampler()).tokens


def assert_equal_but_for_ties(loaded: LoadedModel, name: str, prompt: str, ours: Sequence[int], count: int) -> None:
    """Equal tokens; where verification rounds otherwise than single steps, up to two logits that all but tie."""
    theirs = plainly(loaded, name, prompt, count)
    first = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if loaded.dtype == torch.float32 or name == "native" or first is None:
        assert list(ours) == theirs
        return
    runner = RUNNERS[name](loaded)
    logits = prefill(runner, [*loaded.tokenizer(prompt)["input_ids"], *theirs[:first]]).float()
    assert abs(float(logits[ours[first]] - logits[theirs[first]])) < 0.05 * float(logits.abs().max())


@pytest.mark.parametrize("name", RUNNERS)
@pytest.mark.parametrize("draft", [DRAFT, COST_AWARE], ids=["fixed", "cost-aware"])
def test_answers_are_those_of_plain_decoding(loaded: LoadedModel, name: str, draft: Draft) -> None:
    model = Model(loaded, RUNNERS[name](loaded), draft, STEPS)
    answers = model.generate(PROMPTS, max_new_tokens=24)
    assert sum(answer.drafted for answer in answers) > 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert_equal_but_for_ties(loaded, name, prompt, answer.tokens, 24)
        assert answer.text == model.text_of(answer.tokens)
        assert answer.finish_reason == ("eos" if answer.tokens[-1] == kit.EOS else "length")


def test_without_a_draft_every_token_is_decoded_plainly(chatty: LoadedModel) -> None:
    model = Model(chatty, RUNNERS["fast"](chatty), None)
    answer = model.generate(PROMPTS[0], max_new_tokens=8)
    assert (answer.drafted, answer.rounds) == (0, ())
    assert "no drafts" in model.describe()


def test_the_pieces_of_a_stream_make_the_answer(model: Model) -> None:
    whole = model.generate(PROMPTS[1], max_new_tokens=40)
    stream = model.stream(PROMPTS[1], max_new_tokens=40)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == whole.text == stream.generation.text
    assert [token for piece in pieces for token in piece.tokens] == list(whole.tokens)
    assert stream.generation.rounds == whole.rounds
    by_source = {source: counts.accepted for source, counts in whole.by_source.items()}
    drafted = {source: sum(len(p.tokens) for p in pieces if p.source == source) for source in by_source}
    assert drafted == by_source
    assert sum(len(piece.rejected) for piece in pieces) == whole.drafted - whole.accepted
    assert set(by_source) == {Source.MODEL, NgramLookup.name}


def test_messages_go_through_the_chat_template_and_a_text_is_the_same_as_one_message(model: Model) -> None:
    messages = [{"role": "user", "content": "red sand"}]
    assert model.generate(messages, max_new_tokens=8).tokens == model.generate("red sand", max_new_tokens=8).tokens
    several = model.generate([messages, messages], max_new_tokens=4)
    assert [answer.prompt_tokens for answer in several] == [
        model.generate(messages, max_new_tokens=4).prompt_tokens
    ] * 2
    assert model.generate([], max_new_tokens=4) == []


def test_a_list_of_prompts_of_any_kind_is_one_to_a_type_checker() -> None:
    several, one = (get_type_hints(overload) for overload in get_overloads(Model.generate))
    assert (several["return"], one["return"]) == (list[Generation], Generation)
    (item,) = get_args(several["prompt"])
    assert isinstance(item, TypeVar)  # a list[str | Messages] would be no list[str] and no list of lists of messages
    assert item.__bound__ == one["prompt"]


def test_a_stop_text_ends_the_answer_where_plain_decoding_would_have(chatty: LoadedModel, model: Model) -> None:
    whole = model.generate(PROMPTS[1], max_new_tokens=40)
    stop = whole.text[9:12]
    plain = Model(chatty, RUNNERS["fast"](chatty), None)
    found, expected = (one.generate(PROMPTS[1], max_new_tokens=40, stop=[stop, "~"]) for one in (model, plain))
    assert (found.text, found.tokens, found.finish_reason) == (expected.text, expected.tokens, "stop")
    assert found.text == whole.text[: whole.text.index(stop)]
    assert model.generate(PROMPTS[1], max_new_tokens=40, stop="~~never~~").text == whole.text


def test_any_of_several_end_of_sequence_tokens_ends_an_answer_and_is_no_part_of_its_text(
    chatty: LoadedModel, model: Model
) -> None:
    whole = model.generate(PROMPTS[1], max_new_tokens=40)
    early, late = whole.tokens[12], whole.tokens[20]
    ending = replace(chatty, eos_token_ids=(late, early))
    found = Model(ending, RUNNERS["fast"](ending), DRAFT).generate(PROMPTS[1], max_new_tokens=40)
    first = min(whole.tokens.index(early), whole.tokens.index(late))
    assert (found.tokens, found.finish_reason) == (whole.tokens[: first + 1], "eos")
    assert found.text == model.text_of(whole.tokens[:first])


def test_sampling_repeats_by_its_seed_alone(model: Model) -> None:
    first = model.generate(PROMPTS[0], temperature=1.0, max_new_tokens=24)
    again = model.generate(PROMPTS[0], temperature=1.0, max_new_tokens=24, seed=first.seed)
    others = [model.generate(PROMPTS[0], temperature=1.0, max_new_tokens=24, seed=seed) for seed in (1, 2)]
    assert first.tokens == again.tokens
    assert others[0].tokens != others[1].tokens


def test_compared_answers_stand_beside_plain_ones(model: Model) -> None:
    answers = model.generate(PROMPTS, compare=True, max_new_tokens=12)
    for answer in answers:
        assert answer.plain is not None
        assert answer.plain.tokens == answer.tokens
        assert answer.plain.drafted == 0
        assert answer.speedup is not None
        ratio = answer.plain.seconds / answer.seconds
        assert answer.speedup == pytest.approx(ratio)
        assert answer.to_dict()["same_text"] is True
    assert model.generate(PROMPTS[0], max_new_tokens=4).speedup is None


# -- conversations ------------------------------------------------------------------------------------------------


class Counting:
    """Counts the tokens that a runner's full model prefills."""

    def __init__(self, runner: Any, patch: pytest.MonkeyPatch) -> None:
        self.prefilled: list[int] = []
        forward = runner.forward

        def counted(tokens: Sequence[int], **how: Any) -> Scores:
            if kind_of(tokens, **how) == "prefill":
                self.prefilled.append(len(tokens))
            found: Scores = forward(tokens, **how)
            return found

        patch.setattr(runner, "forward", counted)


@pytest.mark.parametrize("name", RUNNERS)
def test_a_second_turn_runs_only_what_is_new(chatty: LoadedModel, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = RUNNERS[name](chatty)
    counting = Counting(runner, monkeypatch)
    model = Model(chatty, runner, DRAFT)
    chat = model.chat(system="be brief")
    first = chat.send("the sun", max_new_tokens=10)
    second = chat.send("and the sea?", max_new_tokens=300)  # the cache grows, and keeps what it holds
    assert counting.prefilled == [first.prompt_tokens, second.prefilled_tokens]
    assert second.prefilled_tokens <= len("\nuser: and the sea?\nassistant: ") + 1
    fresh = Model(chatty, RUNNERS[name](chatty), DRAFT).generate(chat.messages[:-1], max_new_tokens=300)
    assert second.tokens == fresh.tokens
    assert [turn["role"] for turn in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_later_turn_is_compared_from_the_same_cache(tmp_path: Path) -> None:
    """In bfloat16 keys and values of single steps differ from a prefill's: a fresh start may answer otherwise."""
    loaded = load(kit.tiny_llama(tmp_path, chat=True), "bfloat16")
    model = Model(loaded, RUNNERS["native"](loaded), DRAFT)
    chat = model.chat()
    for text in ("the sun", "and the sea?", "on and on"):
        answer = chat.send(text, max_new_tokens=40)
        plain = model.plainly(chat.messages[:-1], answer, max_new_tokens=40)
        assert plain.prefilled_tokens == answer.prefilled_tokens
        assert plain.tokens == answer.tokens


def test_two_conversations_at_once_are_both_right(chatty: LoadedModel, model: Model) -> None:
    one, other = model.chat(), model.chat()
    texts = ["the sun", "a hat", "the end"]
    for text in texts:
        one.send(text, max_new_tokens=8)
        other.send(text[::-1], max_new_tokens=8)
    alone = Model(chatty, RUNNERS["fast"](chatty), DRAFT).chat()
    for text in texts:
        alone.send(text, max_new_tokens=8)
    assert one.messages == alone.messages


def test_an_answer_that_is_cut_short_stays_in_the_conversation(chatty: LoadedModel, model: Model) -> None:
    chat = model.chat()
    stream = chat.stream("the sun", max_new_tokens=40)
    said = next(stream).text + next(stream).text
    stream.close()
    assert stream.generation.finish_reason == "interrupted"
    assert chat.messages == [{"role": "user", "content": "the sun"}, {"role": "assistant", "content": said}]
    after = chat.send("go on", max_new_tokens=12)
    fresh = Model(chatty, RUNNERS["fast"](chatty), DRAFT).generate(chat.messages[:-1], max_new_tokens=12)
    assert after.tokens == fresh.tokens


def test_an_error_in_the_midst_of_a_pass_leaves_no_cache_to_trust(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = model.chat()
    chat.send("the sun", max_new_tokens=8)
    before = list(chat.messages)

    forward = model._runner.forward

    def fails(tokens: Sequence[int], **how: Any) -> Scores:
        if kind_of(tokens, **how) == "verification":
            raise KeyboardInterrupt
        return forward(tokens, **how)

    with monkeypatch.context() as patch:
        patch.setattr(model._runner, "forward", fails)
        with pytest.raises(KeyboardInterrupt):
            chat.send("and on", max_new_tokens=8)
    assert chat.messages == before
    assert chat.send("and on", max_new_tokens=8).prefilled_tokens > 20  # all of it


def test_another_answer_ends_one_that_is_still_streamed(model: Model) -> None:
    expected = model.generate(PROMPTS[1], max_new_tokens=12).tokens
    stream = model.stream(PROMPTS[0], max_new_tokens=40)
    next(stream)
    assert model.generate(PROMPTS[1], max_new_tokens=12).tokens == expected
    assert list(stream) == []


def test_a_second_thread_is_refused_while_an_answer_is_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.generate(PROMPTS[0], max_new_tokens=12).tokens
    forward = model._runner.forward
    with ThreadPoolExecutor(1) as pool:

        def meanwhile(tokens: Sequence[int], **how: Any) -> Scores:
            with pytest.raises(UsageError, match="answering in another thread"):
                pool.submit(model.generate, PROMPTS[1], max_new_tokens=2).result()
            return forward(tokens, **how)

        monkeypatch.setattr(model._runner, "forward", meanwhile)
        assert model.generate(PROMPTS[0], max_new_tokens=12).tokens == expected


def test_a_second_thread_is_refused_until_the_firsts_answer_has_ended(model: Model) -> None:
    expected = model.generate(PROMPTS[0], max_new_tokens=12).text
    with ThreadPoolExecutor(1) as other:
        for num_read in (0, 2):
            stream = model.stream(PROMPTS[0], max_new_tokens=12)
            pieces = [next(stream).text for _ in range(num_read)]
            for call in (model.generate, model.stream, model.plainly, model.chat().send):
                with pytest.raises(UsageError, match="answering in another thread"):
                    other.submit(call, PROMPTS[1], max_new_tokens=2).result()
            assert "".join([*pieces, *(piece.text for piece in stream)]) == expected
        assert other.submit(model.generate, PROMPTS[0], max_new_tokens=12).result().text == expected
        stream = model.stream(PROMPTS[1], max_new_tokens=12)
        stream.close()
        stream = other.submit(model.stream, PROMPTS[0], max_new_tokens=12).result()
        assert stream.read().text == expected  # read by another thread than the one that began it
        unread = other.submit(model.stream, PROMPTS[0], max_new_tokens=12).result()
    assert model.generate(PROMPTS[0], max_new_tokens=12).text == expected  # the unread one's thread has ended
    with pytest.raises(UsageError, match=r"ended before any of it was read"):
        next(unread)


def test_threads_that_ask_at_once_get_whole_answers_or_are_refused(model: Model) -> None:
    expected = {prompt: model.generate(prompt, max_new_tokens=8).text for prompt in PROMPTS}

    def ask(prompt: str) -> str | None:
        try:
            return model.generate(prompt, max_new_tokens=8).text
        except UsageError:
            return None

    with ThreadPoolExecutor(4) as pool:
        asked = PROMPTS * 8
        for prompt, text in zip(asked, pool.map(ask, asked), strict=True):
            assert text in (None, expected[prompt])
    assert model.generate(PROMPTS[0], max_new_tokens=8).text == expected[PROMPTS[0]]


def test_a_stream_that_nobody_read_says_that_another_answer_ended_it(model: Model) -> None:
    stream, chat = model.stream(PROMPTS[0]), model.chat()
    turn = chat.stream("the sun")
    for ended in (stream, turn):
        model.generate(PROMPTS[1], max_new_tokens=2)
        with pytest.raises(UsageError, match=r"ended before any of it was read.* Read an answer before"):
            ended.read()
        assert ended.generation.finish_reason == "interrupted"
    assert chat.messages == []


@pytest.mark.parametrize("name", RUNNERS)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "repetition_penalty": 1.3, "seed": 5}])
def test_after_an_answer_that_was_cut_off_the_next_is_right(
    chatty: LoadedModel, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(chatty, RUNNERS[name](chatty), DRAFT)
    expected = model.generate(PROMPTS[1], max_new_tokens=16, **options).tokens
    stream = model.stream(PROMPTS[0], max_new_tokens=40, **options)
    for _ in range(3):
        next(stream)
    assert model.generate(PROMPTS[1], max_new_tokens=16, **options).tokens == expected
    assert list(stream) == []
    for at in ("set_draft", "forward", "rewind"):
        with monkeypatch.context() as patch:
            patch.setattr(model._runner, at, interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.generate(PROMPTS[0], max_new_tokens=40, **options)
        assert model.generate(PROMPTS[1], max_new_tokens=16, **options).tokens == expected


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# -- bad inputs ---------------------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_context_is_refused(model: Model) -> None:
    with pytest.raises(ContextError, match=r"The prompt has \d+ tokens, and the model's context 1024"):
        model.generate("z" * 2000)
    with pytest.raises(ContextError, match="The prompt has more characters than could fit, and the model's context"):
        model.generate("z" * 100_000)


def test_an_answer_ends_where_the_context_does(model: Model) -> None:
    room = model.context_length - model.generate("z" * 990, max_new_tokens=1).prompt_tokens
    answer = model.generate("z" * 990, max_new_tokens=500)
    assert (len(answer.tokens), answer.finish_reason) in ((room, "context"), (len(answer.tokens), "eos"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, r"no option 'temprature'.*Did you mean temperature\?"),
        ({"temperature": -1}, "`temperature` -1: expected 0 to 100"),
        ({"max_new_tokens": 0}, "`max_new_tokens` 0: expected a whole number from 1"),
        ({"top_p": 0.0}, "`top_p` 0.0: expected above 0"),
        ({"min_p": 1.5}, "`min_p` 1.5: expected 0"),
        ({"repetition_penalty": 0}, "`repetition_penalty` 0: expected 0.01 to 100"),
        ({"seed": -4}, "`seed` -4: expected a whole number from 0"),
        ({"top_k": 1.5}, "`top_k` 1.5: expected a whole number"),
        ({"max_new_tokens": "5"}, "`max_new_tokens` '5': expected a whole number"),
        ({"stop": [""]}, "expected texts of one character"),
        ({"stop": 5}, "`stop` 5: expected a text, a list of texts"),
        ({"stop": b"x"}, "`stop` b'x': expected a text"),
        ({"stop": ["a", 5]}, "expected a text, a list of texts or None"),
        ({"stop": ""}, "expected texts of one character"),
        ({"seed": 1.5}, "`seed` 1.5: expected a whole number or None"),
        ({"temperature": True}, "`temperature` True: expected a number"),
    ],
)
def test_options_that_mean_nothing_are_refused(model: Model, options: dict[str, Any], message: str) -> None:
    calls: list[Callable[..., object]] = [model.generate, model.stream, model.chat().send]
    for call in calls:
        with pytest.raises(UsageError, match=message):
            call("the sun", **options)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "is not the user"),
        ([{"role": "system", "content": "a"}], "last of the messages is not the user's"),
        ("a \ud83d", r"holds '\\ud83d' at character 3, which is half of a character"),
        ([{"role": "system", "content": "\udcff"}, {"role": "user", "content": "a"}], "a byte that is no UTF-8"),
        ([{"role": "tool", "content": "a"}], "expected system, user or assistant"),
        ([{"role": "user"}], "Message 1 is {'role': 'user'}; expected one such as"),
        ([{"content": "a"}], "Message 1 is {'content': 'a'}; expected one such as"),
        ([{"role": "user", "contnet": "a"}], "Message 1 is .*; expected one such as"),
        ([{"role": "user", "content": "a"}, "b"], "Message 2 is 'b'; expected one such as"),
        ([{"role": "user", "content": 5}], "holds 5 in the place of a text; only text can be rendered. Give messages"),
        (
            [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}],
            "of the system comes after others; expected one at most, before all others",
        ),
        (7, "expected a text, or messages"),
        ([7], "expected a text, or messages"),
        (["a", None], "The prompt is None; expected a text, or messages"),
        ({"role": "user", "content": "a"}, "expected a text, or messages"),
        ("", "The prompt is empty"),
        ([{"role": "user", "content": ""}], "The prompt is empty"),
    ],
)
def test_what_is_no_prompt_is_refused(model: Model, prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        model.generate(prompt)


def test_arguments_of_other_types_are_refused(model: Model) -> None:
    refused: list[tuple[Callable[[Any], object], Any, str]] = [
        (lambda value: model.generate("a", compare=value), "no", "`compare` 'no': expected True or False"),
        (lambda value: model.plainly("a", value), "b", "`beside` 'b': expected a Generation or None"),
        (model.chat, 5, "`system` 5: expected a text or None"),
        (model.text_of, 5, "The tokens are 5; expected a list of token ids"),
        (model.text_of, ["a"], "The tokens are .*; expected a list of token ids"),
    ]
    for call, value, message in refused:
        with pytest.raises(UsageError, match=message):
            call(value)


def test_the_public_types_are_those_that_answer() -> None:
    assert (st.Model, st.Chat.__module__) == (Model, "selfspec_tune.model.model")
