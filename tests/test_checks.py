from __future__ import annotations

import math
from typing import Any

import pytest

from selfspec_tune.checks import kind_of_value, number, numbers, only_known, shown, whole, wholes
from selfspec_tune.errors import UsageError


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
