"""Text as it comes: whatever the pieces, together they are the whole text, and nothing is given too early."""

from __future__ import annotations

import doctest
import random
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest

from selfspec_tune.model import generation
from selfspec_tune.model import stream as stream_module
from selfspec_tune.model.stream import TextStream

WORDS = ["▁Hello", ",", "▁world", "!", "<eos>", "▁"]


def of_bytes(tokens: Sequence[int]) -> str:
    """Every token is a byte."""
    return bytes(tokens).decode("utf-8", errors="replace")


def of_words(tokens: Sequence[int]) -> str:
    """As sentencepiece has it: a space before the first word is none."""
    text = "".join(WORDS[token] for token in tokens if WORDS[token] != "<eos>")
    return text.replace("▁", " ").removeprefix(" ")


def pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], size: int, *stop: str) -> list[str]:
    """What comes for each ``size`` tokens, and at the end."""
    stream = TextStream(decode, stop)
    found = [stream.push(tokens[start : start + size]) for start in range(0, len(tokens), size)]
    return [*found, stream.finish()]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語のテキスト", "a🙂b👩‍👩‍👧c", "�", "x\ufffdy"])
def test_pieces_of_any_size_make_the_whole_text(text: str, size: int) -> None:
    found = pieces(of_bytes, list(text.encode()), size)
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(found[:-1])


def test_bytes_that_become_no_character_come_at_the_end() -> None:
    assert pieces(of_bytes, [*b"ab", 0xF0, 0x9F], 1) == ["a", "b", "", "", "\ufffd"]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_space_before_a_word_is_kept_but_for_the_first(size: int) -> None:
    tokens = [0, 1, 2, 3, 4, 2, 5, 5, 3]
    assert "".join(pieces(of_words, tokens, size)) == of_words(tokens) == "Hello, world! world  !"


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        (("END",), "a EN "),
        (("D",), "a EN EN"),
        (("\n", "ENDED"), "a EN ENDS"),
        (("never",), "a EN ENDS\nmore"),
        (("ENDS\nmore!",), "a EN ENDS\nmore"),
        (("NDS", "ENDS"), "a EN "),  # of two that end together, the longer one
        (("ENDS\nm", "ND"), "a EN E"),  # of two that overlap, the one that ends first
        (("EN", "ENDS"), "a "),
        (("a",), ""),
    ],
)
def test_the_answer_ends_before_a_stop_text(stop: tuple[str, ...], kept: str, size: int) -> None:
    text = "a EN ENDS\nmore"
    assert "".join(pieces(of_bytes, list(text.encode()), size, *stop)) == kept


@pytest.mark.parametrize("seed", range(4))
def test_the_first_stop_text_does_not_depend_on_how_the_text_is_cut(seed: int) -> None:
    """Overlapping ones, those that begin alike, and characters of several bytes cut over tokens."""
    chance = random.Random(seed)
    for _ in range(100):
        text = "".join(chance.choices("abé🙂", k=16))
        stop = tuple("".join(chance.choices("abé🙂", k=chance.randint(1, 4))) for _ in range(chance.randint(1, 3)))
        ends = [(text.find(one) + len(one), text.find(one), one) for one in stop if one in text]
        _, kept, first = min(ends, default=(0, len(text), None))
        for size in (1, 2, 3, 50):
            stream, found = TextStream(of_bytes, stop), ""
            for start in range(0, len(text.encode()), size):
                found += stream.push(list(text.encode()[start : start + size]))
                assert text.startswith(found)
                assert len(found) <= kept  # nothing of a stop text is ever given
            assert (found + stream.finish(), stream.stopped_by) == (text[:kept], first)


def test_only_what_may_be_a_stop_text_is_held_back() -> None:
    assert pieces(of_bytes, list(b"xEyEND!"), 1, "END") == ["x", "", "Ey", "", "", "", "", ""]
    assert pieces(of_bytes, list(b"xEN"), 1, "END") == ["x", "", "", "EN"]


def test_the_stop_text_is_named_and_nothing_comes_after_it() -> None:
    stream = TextStream(of_bytes, ("b", "c"))
    assert (stream.push(b"abc"), stream.stopped_by) == ("a", "b")
    assert stream.push(b"d") == stream.finish() == ""


def test_a_long_answer_is_not_decoded_again_and_again() -> None:
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return of_bytes(tokens)

    stream = TextStream(decode)
    for byte in b"word " * 200:
        stream.push([byte])
    assert longest <= 2


@pytest.mark.parametrize("module", [generation, stream_module])
def test_the_examples_of_docstrings_hold(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)
