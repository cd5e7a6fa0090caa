"""Covering arrays: every pair occurs, in few rows, and the rest of the product waits for ``--all``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

import pytest

from tests.covering import cover, covering_array, rows


@pytest.mark.parametrize("sizes", [(2, 3), (4, 4, 4), (2, 4, 6, 3), (3, 7, 2, 5, 2), (1, 3, 1), (13, 2, 2, 2)])
def test_every_pair_of_values_occurs_in_few_rows(sizes: tuple[int, ...]) -> None:
    rows = covering_array(sizes)
    for one, other in combinations(range(len(sizes)), 2):
        assert {(row[one], row[other]) for row in rows} == set(product(range(sizes[one]), range(sizes[other])))
    largest, second = sorted(sizes)[-1], sorted(sizes)[-2]
    assert len(set(rows)) == len(rows) <= 1.5 * largest * second
    assert rows == covering_array(sizes)


def test_the_cases_are_the_product_of_which_few_run_by_default() -> None:
    parametrize = cover(a=range(4), b={"x": 7, "y": 8}, c=["p", "q", "r"], indirect=["b"])
    names, cases = parametrize.args
    assert (names, parametrize.kwargs) == (["a", "b", "c"], {"indirect": ["b"]})
    assert [case.values for case in cases] == list(product(range(4), (7, 8), "pqr"))
    assert cases[0].id == "0-x-p"
    default = [case.values for case in cases if not case.marks]
    assert len(default) == 12
    assert {mark.name for case in cases for mark in case.marks} == {"long"}


def test_values_that_do_not_go_together_share_no_row_and_every_other_pair_occurs() -> None:
    factors = {"engine": ["c", "python"], "dtype": ["half", "single", "double"], "draws": ["no", "yes"]}

    def is_allowed(row: Mapping[str, str]) -> bool:
        if row.get("engine") == "c" and row.get("dtype") == "half":
            return False
        return not (row.get("draws") == "yes" and row.get("dtype") in ("half", "double"))

    found = rows(is_allowed, **factors)
    assert all(is_allowed(row) for row in found)
    pairs = {pair for row in found for pair in combinations(sorted(row.items()), 2)}
    named = {name: [(name, value) for value in values] for name, values in factors.items()}
    every = {pair for one, other in combinations(sorted(factors), 2) for pair in product(named[one], named[other])}
    assert every - pairs == {
        (("dtype", "half"), ("engine", "c")),
        (("draws", "yes"), ("dtype", "half")),
        (("draws", "yes"), ("dtype", "double")),
    }
    assert rows(lambda row: False, **factors) == []
