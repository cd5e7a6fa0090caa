"""Cases of several factors: a few that cover every pair of values by default, all of them with ``--all``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Level = tuple[int, int]  # a factor, and which of its values


def covering_array(sizes: Sequence[int], is_allowed: Callable[[dict[int, int]], bool] = bool) -> list[tuple[int, ...]]:
    """Rows of value numbers, one a factor of ``sizes`` values, in which each pair of two factors' values occurs.

    Greedy: a row begins with a pair that is still missing, and takes of every other factor the value that adds
    most missing pairs. ``is_allowed`` says of some factors' values whether they go together; a pair that no row
    can hold occurs in none.
    """
    levels = [[(factor, value) for value in range(size)] for factor, size in enumerate(sizes)]
    missing = {pair for one, other in combinations(levels, 2) for pair in product(one, other)}
    rows: list[tuple[int, ...]] = []
    while missing:
        first = min(missing)
        row = _completed(list(first), levels, missing, is_allowed)
        missing -= {first} if row is None else _pairs(row)
        if row is not None:
            rows.append(tuple(value for _, value in sorted(row)))
    return rows


def _completed(
    row: list[Level],
    levels: Sequence[Sequence[Level]],
    missing: set[tuple[Level, Level]],
    is_allowed: Callable[[dict[int, int]], bool],
) -> list[Level] | None:
    """The row with a value of every factor; None where none goes with what it has."""
    if not is_allowed(dict(row)):
        return None
    choices = next((choices for factor, choices in enumerate(levels) if factor not in dict(row)), None)
    if choices is None:
        return row
    ranked = sorted(choices, key=lambda level: len(missing & _pairs([*row, level])), reverse=True)
    tried = (_completed([*row, level], levels, missing, is_allowed) for level in ranked)
    return next((whole for whole in tried if whole is not None), None)


def _pairs(row: Sequence[Level]) -> set[tuple[Level, Level]]:
    return {(one, other) for one, other in combinations(sorted(row), 2)}


def cover(indirect: Sequence[str] = (), **factors: Sequence[Any] | Mapping[str, Any]) -> pytest.MarkDecorator:
    """``parametrize`` over ``factors``, named as the test's arguments; ``indirect``: those that are fixtures.

    A mapping's keys are the values' names. Cases beyond those that cover each pair carry the mark ``long``.
    """
    named = [_named(values) for values in factors.values()]
    chosen = set(covering_array([len(values) for values in named]))
    cases = []
    for row in product(*(range(len(values)) for values in named)):
        picked = [values[number] for values, number in zip(named, row, strict=True)]
        names, arguments = zip(*picked, strict=True)
        marks = () if row in chosen else pytest.mark.long
        cases.append(pytest.param(*arguments, id="-".join(names), marks=marks))
    return pytest.mark.parametrize(list(factors), cases, indirect=list(indirect))


def rows(
    is_allowed: Callable[[Mapping[str, str]], bool] = bool, **factors: Sequence[str] | Mapping[str, Any]
) -> list[dict[str, str]]:
    """A few rows, by factor the name of a value, that hold each pair of names that ``is_allowed`` lets into any row.

    For more factors than `cover` could take the product of. ``is_allowed`` is asked of beginnings of rows too.
    """
    factor_names, value_names = list(factors), [list(values) for values in factors.values()]

    def named(row: Mapping[int, int]) -> dict[str, str]:
        return {factor_names[factor]: value_names[factor][value] for factor, value in row.items()}

    found = covering_array([len(names) for names in value_names], lambda row: is_allowed(named(row)))
    return [named(dict(enumerate(row))) for row in found]


def _named(values: Sequence[Any] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(values, Mapping):
        return list(values.items())
    return [(str(getattr(value, "kind", value)), value) for value in values]
