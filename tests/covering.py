"""Cases of several factors: a few that cover every pair of values by default, all of them with ``--all``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Level = tuple[int, int]  # a factor, and which of its values


def covering_array(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Rows of value numbers, one a factor of ``sizes`` values, in which each pair of two factors' values occurs.

    Greedy: a row begins with a pair that is still missing, and takes of every other factor the value that adds
    most missing pairs.
    """
    levels = [[(factor, value) for value in range(size)] for factor, size in enumerate(sizes)]
    missing = {pair for one, other in combinations(levels, 2) for pair in product(one, other)}
    rows: list[tuple[int, ...]] = []
    while missing:
        row: list[Level] = list(min(missing))
        for factor, choices in enumerate(levels):
            if factor not in dict(row):
                row.append(max(choices, key=lambda level: len(missing & _pairs([*row, level]))))
        missing -= _pairs(row)
        rows.append(tuple(value for _, value in sorted(row)))
    return rows


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


def _named(values: Sequence[Any] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(values, Mapping):
        return list(values.items())
    return [(str(getattr(value, "kind", value)), value) for value in values]
