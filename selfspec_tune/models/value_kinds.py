"""Kinds of values in the JSON files of a checkpoint: what fits, and how that is called.  Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Any

from selfspec_tune.bounds import shown

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value fits, and what is expected, in words."""


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number of at least ``least``; true and 1.0 are none."""
    return type(value) is int and value >= least


def is_number(value: Any) -> bool:
    """Whether it is a number, and a finite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _each(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The rule, of a value or of every one in a list: some architectures state one a layer."""
    return lambda value: all(map(rule, value)) if isinstance(value, list) else rule(value)


SIZE: Rule = (_each(lambda value: is_whole(value, 1)), "a whole number of at least 1")
COUNT: Rule = (lambda value: is_whole(value, 0), "a whole number of at least 0")
NUMBER: Rule = (is_number, "a number")
POSITIVE: Rule = (_each(lambda value: is_number(value) and value > 0), "a number above 0")
NOT_NEGATIVE: Rule = (lambda value: is_number(value) and value >= 0, "a number of at least 0")
SHARE: Rule = (lambda value: is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
OBJECT: Rule = (lambda value: isinstance(value, dict), "an object, or null")
LIST: Rule = (lambda value: isinstance(value, list | dict), "a list")
TEXT: Rule = (lambda value: isinstance(value, str), "a text")
TEXTS: Rule = (lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value), "texts")
TOKEN: Rule = (_each(lambda value: type(value) is int), "a token's number, or a list of such")


def by_key(kinds: Mapping[Rule, tuple[str, ...]]) -> dict[str, Rule]:
    """The rule of every key, of the keys of every rule."""
    return {key: rule for rule, keys in kinds.items() for key in keys}


def unfit(values: Mapping[str, Any], rules: Mapping[str, Rule]) -> Iterator[tuple[str, str]]:
    """Keys whose values do not fit their rule, each with a clause that says so; null fits every rule."""
    for key, value in values.items():
        if value is not None and key in rules and not rules[key][0](value):
            yield key, f"{key} is {shown(value)}; expected {rules[key][1]}"
