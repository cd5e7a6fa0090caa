from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from selfspec_tune.checks import (
    check_fields,
    check_kind,
    check_option_names,
    checked_arguments,
    kind_of_value,
    number,
    numbers,
    only_known,
    path_or_none,
    shown,
    whole,
    wholes,
)
from selfspec_tune.errors import UsageError
from selfspec_tune.requests import SearchRequest, StrategyName


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1], 0, 11, 10**400, math.nan])
def test_no_whole_number_in_the_range_is_refused_by_name(value: Any) -> None:
    with pytest.raises(UsageError, match=r"draft\.length is .*; expected a whole number from 1 to 10"):
        whole("draft.length", value, 1, 10)


@pytest.mark.parametrize("value", [False, "0.5", None, {}, -0.1, 1.1, 10**400, math.nan, math.inf, -math.inf])
def test_no_number_in_the_range_is_refused_by_name(value: Any) -> None:
    with pytest.raises(UsageError, match=r"share is .*; expected a number from 0 to 1\."):
        number("share", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, "x", True])
def test_without_a_range_a_number_must_still_be_one(value: Any) -> None:
    with pytest.raises(UsageError, match=r"seconds is .*; expected a number\."):
        number("seconds", value)


def test_what_fits_is_given_back() -> None:
    assert whole("n", 10, 1, 10) == 10
    assert number("x", 1) == 1
    assert numbers("x", [1, 2.5]) == (1.0, 2.5)
    assert wholes("n", [0, 3], 3) == (0, 3)
    assert only_known("it", {"a": 1}, ("a", "b")) == {"a": 1}


def test_a_list_names_the_place_of_what_is_wrong() -> None:
    with pytest.raises(UsageError, match=r"verify\.1 is 'x'"):
        numbers("verify", [1.0, "x"])
    with pytest.raises(UsageError, match=r"tokens\.0 is -1"):
        wholes("tokens", [-1], 5)
    for read in (numbers, lambda name, value: wholes(name, value, 5)):
        with pytest.raises(UsageError, match="expected a list"):
            read("x", "12")


def test_a_key_that_is_not_known_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="ngram has the key 'maxtokens'; known here are max_tokens"):
        only_known("ngram", {"maxtokens": 3}, ("max_tokens",))
    with pytest.raises(UsageError, match="expected an object"):
        only_known("ngram", [3], ("max_tokens",))


def test_a_long_value_is_cut() -> None:
    assert len(shown("x" * 10_000)) < 100


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (7, "a number"),
        (1.5, "a number"),
        ("7", "a text"),
        ([], "a list"),
        ({}, "an object"),
        (b"", "bytes"),
    ],
)
def test_a_value_is_called_what_json_calls_it(value: Any, kind: str) -> None:
    assert kind_of_value(value) == kind
    assert shown(value) == (kind if kind in ("null", "true", "false") else repr(value))


# -- options and arguments by their annotations ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "fitting", "wrong", "expected"),
    [
        (bool, [True, False], [1, 0, "no", None], "True or False"),
        (int, [0, -3], [True, 1.0, "1", None], "a whole number"),
        (float, [0, 1.5, math.nan], [True, "1", None], "a number"),
        (str, ["", "a", StrategyName.TPE], [b"a", 5, ["a"], None], "a text"),
        (str | None, ["a", None], [5, False], "a text or None"),
        (bool | None, [True, None], ["no", 1], "True, False or None"),
        (Path, [Path("a")], ["a", b"a", 5], "a pathlib.Path"),
        (str | os.PathLike[str], ["a", Path("a")], [b"a", 5], "a text or a path"),
        (tuple[str, ...], [(), ("a",)], ["a", ["a"], ("a", 5)], "a tuple of texts"),
        (tuple[tuple[str, object], ...], [(("a", 5),)], [("a",), 5], "a tuple of values"),
        (Sequence[str] | None, [["a"], ("a",), None], ["a", b"a", [5], {"a"}], "a list of texts or None"),
        (StrategyName, ["tpe", StrategyName.TPE], ["fast", 5, None], "one of staged, tpe,"),
        (Callable[[str], None], [print], [5, None], "a function"),
    ],
)
def test_a_value_is_held_to_its_annotation(hint: Any, fitting: list[Any], wrong: list[Any], expected: str) -> None:
    for value in fitting:
        check_kind("it", value, hint)
    for value in wrong:
        with pytest.raises(UsageError) as error:
            check_kind("it", value, hint)
        assert str(error.value).startswith(f"`it` {value!r}: expected {expected}")


def test_a_long_value_is_cut_there_too() -> None:
    with pytest.raises(UsageError, match=r"^`it` \[1, 1, .*…: expected a text\.$") as error:
        check_kind("it", [1] * 1000, str)
    assert len(str(error.value)) < 120


def test_a_dataclass_is_held_to_its_annotations() -> None:
    @dataclass(frozen=True)
    class Options:
        count: int | None = None

    check_fields(Options(5))
    with pytest.raises(UsageError, match="`count` '5': expected a whole number or None"):
        check_fields(Options("5"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"`out` 'a': expected a pathlib.Path"):
        SearchRequest("a")  # type: ignore[arg-type]


def test_an_unknown_name_is_answered_with_the_nearest_or_all() -> None:
    check_option_names("it", ["seed"], ["seed", "trials"])
    with pytest.raises(UsageError, match=r"no option 'triasl' of it. Did you mean trials\?"):
        check_option_names("it", ["seed", "triasl"], ["seed", "trials"])
    with pytest.raises(UsageError, match=r"no option 'nonsense' of it. Known are seed, trials\."):
        check_option_names("it", ["nonsense"], ["seed", "trials"])


def test_a_function_is_held_to_its_annotations() -> None:
    @checked_arguments
    def add(*numbers: int, start: int = 0) -> int:
        return sum(numbers, start)

    @checked_arguments
    def passes_on(name: str, **options: Any) -> Any:
        return options

    assert add(1, 2, start=3) == 6
    assert passes_on("a", b=None) == {"b": None}
    with pytest.raises(UsageError, match="`numbers` '2': expected a whole number"):
        add(1, "2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no option 'begin' of add\(\)"):
        add(begin=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing a required argument: 'name'"):
        passes_on()  # type: ignore[call-arg]


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_a_text_that_names_no_path_is_refused(text: str) -> None:
    assert path_or_none("out", Path("a")) == path_or_none("out", "a") == Path("a")
    assert path_or_none("out", None) is None
    with pytest.raises(UsageError, match=r"`out` .*: expected the name of a file or folder"):
        path_or_none("out", text)
