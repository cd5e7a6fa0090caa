from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.draft.sublayer import SubLayerId, sublayers_of
from selfspec_tune.errors import SkipSetError


@st.composite
def skip_sets(draw: st.DrawFn) -> SkipSet:
    flags = draw(st.integers(1, 90).flatmap(lambda n: st.lists(st.booleans(), min_size=2 * n, max_size=2 * n)))
    return SkipSet.from_flags(flags)


@settings(deadline=None, max_examples=50)
@given(skip_sets())
def test_the_text_form_reads_back_as_the_same_set(skip_set: SkipSet) -> None:
    assert SkipSet.parse(str(skip_set), skip_set.num_layers) == skip_set


@settings(deadline=None, max_examples=50)
@given(skip_sets())
def test_flags_read_back_as_the_same_set(skip_set: SkipSet) -> None:
    assert SkipSet.from_flags(skip_set.to_flags()) == skip_set
    assert sum(skip_set.to_flags()) == skip_set.num_skipped == len(skip_set.indices)


@settings(deadline=None, max_examples=50)
@given(skip_sets())
def test_the_layer_map_draws_each_sublayer_once(skip_set: SkipSet) -> None:
    attention, mlp = (row[5:] for row in skip_set.layer_map().split("\n"))
    assert len(attention) == len(mlp) == skip_set.num_layers
    assert tuple(i for i, mark in enumerate(attention) if mark == "·") == skip_set.attention
    assert tuple(i for i, mark in enumerate(mlp) if mark == "·") == skip_set.mlp


def test_an_empty_skip_set_prints_as_none() -> None:
    assert str(SkipSet.empty(4)) == "none"
    assert SkipSet.empty(4).is_empty


def test_runs_of_layers_print_as_ranges() -> None:
    skip_set = SkipSet(16, attention=(14, *range(2, 10)), mlp=(5, 3, 3))
    assert str(skip_set) == "attn 2-9,14 · mlp 3,5"
    assert skip_set.to_dict() == {"attention": [*range(2, 10), 14], "mlp": [3, 5]}


@pytest.mark.parametrize(
    "text",
    [
        "attn 2-9,14 · mlp 3,5",
        "attn 2-9,14 mlp 3,5",
        "mlp 3, 5 ; attention: 2 - 9, 14",
        "MLP 5,3 | Attn 14,2–9",
        "attn 2-9 · mlp 3,5 · attn 14",
    ],
)
def test_the_dot_the_order_and_the_spelling_are_free(text: str) -> None:
    assert str(SkipSet.parse(text, 16)) == "attn 2-9,14 · mlp 3,5"


@pytest.mark.parametrize("text", ["", "attn", "attn 2-", "layers 3", "mlp 3 5", "attn 1,", "attn -1", "2-9"])
def test_a_text_that_is_no_skip_set_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(SkipSetError, match="expected a form like 'attn 2-9,14 · mlp 3,5'"):
        SkipSet.parse(text, 16)


def test_a_layer_out_of_range_is_named_with_the_valid_range() -> None:
    with pytest.raises(SkipSetError, match=r"mlp layer 30 is out of range; .* 30 layers, numbered 0 to 29"):
        SkipSet.parse("mlp 30", 30)
    with pytest.raises(SkipSetError, match="attention layer -1"):
        SkipSet(4, attention=(-1,))
    with pytest.raises(SkipSetError, match="999999999999"):
        SkipSet.parse("attn 0-999999999999", 30)


def test_a_range_that_runs_backwards_is_refused_with_the_remedy() -> None:
    with pytest.raises(SkipSetError, match="write 3-7"):
        SkipSet.parse("attn 7-3", 16)


def test_layer_numbers_must_be_whole() -> None:
    with pytest.raises(SkipSetError, match="not a whole number"):
        SkipSet(4, attention=(True,))
    with pytest.raises(SkipSetError, match="not a whole number"):
        SkipSet(4, mlp=(1.5,))  # type: ignore[arg-type]


def test_a_model_has_at_least_one_layer() -> None:
    with pytest.raises(SkipSetError, match="at least one layer"):
        SkipSet(0)


def test_flags_come_in_pairs() -> None:
    with pytest.raises(SkipSetError, match="two for each layer"):
        SkipSet.from_flags([True])


@settings(deadline=None, max_examples=50)
@given(st.integers(3, 80), st.data())
def test_uniform_skips_as_many_as_asked_and_keeps_the_ends(num_layers: int, data: st.DataObject) -> None:
    num_attention = data.draw(st.integers(0, num_layers - 2))
    num_mlp = data.draw(st.integers(0, num_layers - 2))
    skip_set = SkipSet.uniform(num_layers, num_attention, num_mlp)
    assert (len(skip_set.attention), len(skip_set.mlp)) == (num_attention, num_mlp)
    assert not {0, num_layers - 1} & {*skip_set.attention, *skip_set.mlp}


@settings(deadline=None, max_examples=50)
@given(st.integers(4, 80), st.data())
def test_uniform_is_evenly_spaced(num_layers: int, data: st.DataObject) -> None:
    layers = SkipSet.uniform(num_layers, data.draw(st.integers(2, num_layers - 1)), 0).attention
    gaps = {later - earlier for earlier, later in pairwise(layers)}
    assert max(gaps) - min(gaps) <= 1


def test_uniform_takes_the_ends_only_when_nothing_else_is_left() -> None:
    assert SkipSet.uniform(4, 3, 4) == SkipSet(4, (1, 2, 3), (0, 1, 2, 3))


def test_uniform_never_skips_the_first_attention() -> None:
    with pytest.raises(SkipSetError, match="expected 0 to 3"):
        SkipSet.uniform(4, 4, 0)


def test_random_sets_have_the_size_asked_for_and_repeat_with_the_seed() -> None:
    skip_set = SkipSet.random(30, 11, 7, seed=3)
    assert (len(skip_set.attention), len(skip_set.mlp)) == (11, 7)
    assert skip_set == SkipSet.random(30, 11, 7, seed=3) != SkipSet.random(30, 11, 7, seed=4)
    with pytest.raises(SkipSetError, match="Cannot skip 31 mlp"):
        SkipSet.random(30, 0, 31, seed=0)


def test_sets_of_different_models_have_no_distance() -> None:
    with pytest.raises(SkipSetError, match="same model"):
        SkipSet(4).distance(SkipSet(5))


def test_sublayers_are_named_by_kind_and_layer() -> None:
    assert [str(SubLayerId.of(index)) for index in (0, 1, 6, 7)] == ["attn 0", "mlp 0", "attn 3", "mlp 3"]
    assert [sublayer.index for sublayer in sublayers_of(3)] == list(range(6))


def test_skip_sets_are_values() -> None:
    assert len({SkipSet(4, (2, 1)), SkipSet(4, (1, 2, 2)), SkipSet(4)}) == 2


@pytest.mark.parametrize("text", ["mlp \u0661", "attn 1-\u0967", "mlp \u00b2", "mlp 1" + "0" * 5000])
def test_only_our_own_digits_make_a_layers_number(text: str) -> None:
    with pytest.raises(SkipSetError):
        SkipSet.parse(text, 4)


@pytest.mark.parametrize("depth", [0, -1, 10_001, 10**9])
def test_no_model_has_such_a_depth(depth: int) -> None:
    with pytest.raises(SkipSetError, match="expected at least one layer, at most 10000"):
        SkipSet(depth)
