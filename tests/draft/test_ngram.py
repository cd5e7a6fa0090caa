"""The lookup against a search of the whole context, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfspec_tune.draft.ngram import NgramIndex, NgramLookup
from selfspec_tune.draft.source import NOTHING, Found, common_prefix
from tests.engine_kit import by_search


def find(tokens: Sequence[int], *, most: int = 3, least: int = 1, length: int = 4) -> Found:
    return NgramIndex(NgramLookup(most, least, length), tokens).find()


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 6),
    st.integers(0, 40),
)
def test_it_finds_what_a_search_finds_however_the_context_grew(
    tokens: list[int], least: int, more: int, length: int, split: int
) -> None:
    lookup = NgramLookup(least + more, least, length)
    index = NgramIndex(lookup, tokens[:split])
    for token in tokens[split:]:
        index.extend([token])
    expected = by_search(tokens, lookup)
    assert index.find() == NgramIndex(lookup, tokens).find()
    assert index.find().tokens == (expected or ())
    assert (index.find() == NOTHING) == (expected is None)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=12), st.integers(1, 3))
def test_a_rewound_index_is_what_it_was(kept: list[int], taken_back: list[int], least: int) -> None:
    lookup = NgramLookup(least + 1, least, 4)
    index = NgramIndex(lookup, kept)
    index.extend(taken_back)
    index.rewind(len(kept))
    assert index.length == len(kept)
    assert index.find() == NgramIndex(lookup, kept).find()
    index.extend(taken_back)
    assert index.find() == NgramIndex(lookup, [*kept, *taken_back]).find()


def test_the_longest_match_wins_and_among_equals_the_latest() -> None:
    assert find([1, 2, 3, 9, 2, 3, 8, 1, 2, 3]).tokens == (9, 2, 3, 8)
    assert find([2, 3, 9, 9, 2, 3, 8, 8, 2, 3]).tokens == (8, 8, 2, 3)


def test_the_suffix_does_not_find_itself() -> None:
    assert find([1, 2, 3]) == NOTHING
    assert find([]) == NOTHING
    assert find([5]) == NOTHING


def test_matches_shorter_than_asked_for_do_not_count() -> None:
    assert find([1, 2, 3, 1], least=2) == NOTHING
    assert find([1, 2, 3, 1, 2], least=2).tokens == (3, 1, 2, 3)


def test_a_copy_that_reaches_the_end_goes_on_with_itself() -> None:
    assert find([7, 7]).tokens == (7, 7, 7, 7)
    assert find([1, 2, 1, 2], length=5).tokens == (1, 2, 1, 2, 1)


@pytest.mark.parametrize(("repeated", "length"), [(2, 2), (3, 3), (5, 5), (30, 16)])
def test_the_length_of_a_match_is_told_beyond_what_was_looked_up(repeated: int, length: int) -> None:
    stretch = list(range(100, 100 + repeated))
    assert find([*stretch, 1, 2, *stretch], most=2).match_length == length


def test_a_common_prefix_is_counted() -> None:
    assert [common_prefix(*pair) for pair in (((), (1,)), ((1, 2), (1, 2, 3)), ((1, 2, 3), (1, 9, 3)))] == [0, 2, 1]


def test_what_a_file_leaves_out_is_as_it_was_when_files_left_it_out() -> None:
    assert NgramLookup.from_dict({}) == NgramLookup(max_match=4, min_match=2, max_tokens=10, draft_tokens=0)
    assert NgramLookup.from_dict(NgramLookup().to_dict()) == NgramLookup()


@given(st.lists(st.integers(0, 2), max_size=60), st.lists(st.integers(0, 2), max_size=30))
def test_the_default_index_is_rewound_to_what_it_was(kept: list[int], taken_back: list[int]) -> None:
    index, fresh = NgramIndex(NgramLookup(), kept), NgramIndex(NgramLookup(), kept)
    index.extend(taken_back)
    index.rewind(len(kept))
    assert vars(index) == vars(fresh)
