"""Answers that go on in circles are found and told apart; repetitive text that is meant is not among them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from random import Random

import pytest

from selfspec_tune.measure.degeneration import is_degenerate, judge, longest_loop

LENGTHS = [16, 32, 128, 512]


def prose(length: int, seed: int = 0) -> list[int]:
    """Tokens as frequent as words are."""
    generator = Random(seed)
    return [int(generator.paretovariate(0.8)) % 3000 for _ in range(length)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("period", [1, 2, 4, 9, 30])
def test_one_token_or_phrase_for_ever_is_found(period: int, length: int) -> None:
    if length < 3 * period:
        return
    phrase = prose(period, seed=period)
    assert is_degenerate((phrase * length)[:length], ended=False)


@pytest.mark.parametrize("begun", [0.0, 0.3, 0.6])
def test_an_answer_that_begins_well_and_ends_in_a_loop_is_found(begun: float) -> None:
    length = 128
    start = prose(round(begun * length))
    assert is_degenerate([*start, *([7, 8, 9, 4, 11] * length)][:length], ended=False)


def test_a_loop_whose_period_varies_is_found() -> None:
    phrase = prose(24)
    counted = [token for number in range(20) for token in (5000 + number, *phrase)]
    assert is_degenerate(counted[:256], ended=False)
    generator = Random(1)
    drawn = [generator.choice([3, 3, 3, 3, 3, 4]) for _ in range(128)]
    assert is_degenerate(drawn, ended=False)


@pytest.mark.parametrize("length", LENGTHS)
def test_prose_is_none(length: int) -> None:
    assert not any(is_degenerate(prose(length, seed), ended=False) for seed in range(20))


def counting(length: int) -> list[int]:
    """``1, 2, 3, …`` with a token for each digit, comma and space."""
    return [ord(character) for character in ", ".join(map(str, range(1, length)))][:length]


def table(length: int) -> list[int]:
    """A table of three columns: bars and line ends come back, words do not."""
    words, rows = iter(prose(4 * length, 3)), list[int]()
    while len(rows) < length:
        rows += [9001, next(words), 9001, next(words), next(words), 9001, next(words), 9002]
    return rows[:length]


def assertions(length: int) -> list[int]:
    """``assert f(1) == 2`` a line, with numbers of two digits that differ."""
    digits, lines = Random(2), list[int]()
    while len(lines) < length:
        lines += [1, 2, 3, *digits.choices(range(10, 20), k=2), 4, 5, *digits.choices(range(10, 20), k=2), 6]
    return lines[:length]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("text", [counting, table, assertions])
def test_lists_tables_and_code_are_none(text: Callable[[int], list[int]], length: int) -> None:
    assert not is_degenerate(text(length), ended=False)


def test_a_rule_within_a_table_is_none() -> None:
    answer = [*prose(80), *([9001, 9003] * 12), *prose(10)]
    assert not is_degenerate(answer, ended=False)
    assert not is_degenerate(answer[:104], ended=False)  # cut within the rule


@pytest.mark.parametrize("answer", [[5, 2], [5, 5, 5, 5, 5, 5, 2], [*([5, 6] * 20), 2], [2]])
def test_a_short_answer_that_ends_by_itself_is_none(answer: Sequence[int]) -> None:
    assert not is_degenerate(answer, ended=True)


def test_what_the_limit_cut_is_judged_by_its_second_half_too() -> None:
    long = prose(55)
    assert is_degenerate((long * 3)[:128], ended=False)  # two rounds and a bit
    changing = [*long[:20], 1, 2, 3, *long[:20], 4, 5, *long[:20]]
    assert is_degenerate([*prose(64, 1), *changing], ended=False)
    assert not is_degenerate([*prose(100, 1), *long[:14], *long[:14]], ended=False)


def digits(length: int) -> list[int]:
    """A list of numbers of one digit, with a token for each digit, comma and space."""
    generator = Random(4)
    return [token for _ in range(length) for token in (generator.randrange(10), 20, 21)][:length]


def test_a_list_of_small_numbers_is_none() -> None:
    assert not any(is_degenerate(digits(length), ended=False) for length in LENGTHS)


def test_a_long_loop_counts_even_where_the_model_ended_it() -> None:
    assert is_degenerate([*([5, 6, 7] * 40), 2], ended=True)


def test_nothing_is_no_loop() -> None:
    assert longest_loop([]) == longest_loop([1]) == longest_loop([1, 1]) == 0
    assert not is_degenerate([], ended=False)


def test_the_loop_is_counted_from_the_end() -> None:
    assert longest_loop([1, 2, 3, 9, 8, 9, 8, 9, 8]) == 6
    assert longest_loop([4, 4, 4, 4, 1]) == 0


@pytest.mark.parametrize(
    ("period", "length", "begun"),
    [(24, 64, 0), (27, 64, 0), (50, 128, 0), (55, 128, 0), (40, 128, 38), (100, 256, 0), (200, 512, 0), (25, 128, 64)],
)
def test_a_loop_with_a_long_period_is_found_from_2_3_turns_on(period: int, length: int, begun: int) -> None:
    answer = [*prose(begun, 7), *(prose(period, period) * 9)][:length]
    assert is_degenerate(answer, ended=False)
    assert is_degenerate(list(map(str, answer)), ended=False)


def test_what_is_said_twice_and_left_is_no_loop() -> None:
    paragraph = prose(36, 5)
    assert not is_degenerate([*prose(30, 6), *paragraph, *paragraph, *prose(26, 8)], ended=False)
    assert not is_degenerate([*paragraph, *prose(20, 9), *paragraph], ended=False)  # a quotation, taken up again


def tokens_of(lines: Iterable[str], length: int) -> list[str]:
    """Words, marks and digits, each a token."""
    return re.findall(r"\d|\w+| +|\n|[^\w\s]", "".join(lines))[:length]


NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jan", "Kim", "Leo", "Mia", "Ned", "Oda"]
NEAR_EQUAL = [
    '{{"id": {n}, "name": "item {n}", "active": true}},\n',
    '  {{\n    "id": {n},\n    "name": "{name}",\n    "role": "user",\n    "active": true\n  }},\n',
    '{{"name": "{name}", "role": "user", "active": true, "verified": false}},\n',
    '{{"id": {n}, "name": "Item {n}", "price": 9.99, "in_stock": true}},\n',
    '  <li class="item"><a href="/items/{n}">{name}</a></li>\n',
    "    assert add({n}, 2) == {n}\n",
    "| {name} | 0 | 0 | 0 | yes | no | yes |\n",
]


@pytest.mark.parametrize("length", [64, 128, 256])
@pytest.mark.parametrize("row", NEAR_EQUAL)
def test_near_equal_rows_that_the_limit_cut_are_none(row: str, length: int) -> None:
    rows = [row.format(n=number + 1, name=name) for number, name in enumerate(NAMES)]
    assert not is_degenerate(tokens_of(["[\n", *rows], length), ended=False)


@pytest.mark.parametrize("length", [128, 256])
def test_one_sentence_under_ever_new_numbers_is_found(length: int) -> None:
    sentence = "If you are in a hospital, you can call the line, which is for all who need it.\n"
    assert is_degenerate(tokens_of([f"{number}. {sentence}" for number in range(1, 20)], length), ended=False)


def test_an_answer_of_fewer_than_12_tokens_is_too_short_to_tell() -> None:
    assert judge([5] * 11, ended=False) is None
    assert judge([*range(11), 2], ended=True) is None
    assert judge([], ended=False) is None
    assert judge([5] * 12, ended=False) is True
    assert judge([*range(12), 2], ended=True) is False
