from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfspec_tune.draft import Draft, DraftPolicy, DraftPrecision, Precision, rescaled
from selfspec_tune.draft.skip_set import SkipSet

CHOICES = st.sampled_from([None, *Precision])


def draft_of(sublayers: list[Precision | None]) -> Draft:
    return Draft(SkipSet.empty(len(sublayers) // 2)).with_sublayers(sublayers)


DRAFTS = st.integers(2, 40).flatmap(lambda n: st.lists(CHOICES, min_size=2 * n, max_size=2 * n)).map(draft_of)


@given(DRAFTS, st.integers(2, 60))
def test_the_same_share_of_attentions_and_of_mlps_is_skipped(draft: Draft, num_layers: int) -> None:
    own, other = draft.skip_set, rescaled(draft, num_layers).skip_set
    assert other.num_layers == num_layers
    for before, after in ((own.attention, other.attention), (own.mlp, other.mlp)):
        ends = {0, own.num_layers - 1}
        most = num_layers - len(ends.difference(before))
        assert len(after) == min(most, round(num_layers * len(before) / own.num_layers))


@given(DRAFTS)
def test_at_its_own_depth_a_draft_stays_what_it_is(draft: Draft) -> None:
    assert rescaled(draft, draft.skip_set.num_layers) is draft


@given(st.integers(1, 30).flatmap(lambda n: st.sets(st.integers(0, n), max_size=n)), st.integers(31, 62))
def test_a_deeper_model_and_back_skips_what_was_skipped(layers: set[int], deeper: int) -> None:
    draft = Draft(SkipSet(31, tuple(layers), ()))
    assert len(rescaled(rescaled(draft, deeper), 31).skip_set.attention) == len(layers)
    assert rescaled(rescaled(draft, 61), 31).skip_set == draft.skip_set  # twice as many steps between first and last


def test_layers_go_to_the_same_relative_depth() -> None:
    draft = Draft(SkipSet(24, (3, 7, 11), tuple(range(8, 16))))
    assert str(rescaled(draft, 30).skip_set) == "attn 3-4,9,14 · mlp 10-19"
    assert str(rescaled(draft, 12).skip_set) == "attn 3,5 · mlp 4-7"


def test_a_first_or_last_layer_that_is_kept_stays_kept() -> None:
    middle = tuple(range(1, 23))
    for num_layers in (8, 16, 30, 48):
        found = rescaled(Draft(SkipSet(24, middle, middle)), num_layers).skip_set
        assert {0, num_layers - 1}.isdisjoint(found.attention + found.mlp)


def test_an_early_exit_stays_one() -> None:
    found = rescaled(Draft(SkipSet(24, tuple(range(8, 24)), tuple(range(8, 24)))), 30).skip_set
    assert found == SkipSet(30, tuple(range(10, 30)), tuple(range(10, 30)))


def test_precisions_go_along_and_all_else_stays() -> None:
    precision = DraftPrecision.parse("int4 attn 0-1 · mlp 0-1; int8 attn 2-3 · mlp 2-3; head int8", 4)
    policy = DraftPolicy(max_draft_tokens=9)
    found = rescaled(Draft(SkipSet(4, (2,), ()), policy, precision, vocabulary=77), 8)
    assert found.policy == policy
    assert found.vocabulary == 77
    assert found.precision.head is Precision.INT8
    assert [p.value if p else "-" for p in found.sublayers[1::2]] == ["int4"] * 4 + ["int8"] * 4
    assert found.skip_set.attention == (4, 5)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_hardly_any_layers_can_be_rescaled_to(num_layers: int) -> None:
    assert rescaled(Draft(SkipSet(12, (3,), ())), num_layers).skip_set.is_empty
    everything = Draft(SkipSet(12, tuple(range(12)), tuple(range(12))))
    assert rescaled(everything, num_layers).skip_set.num_skipped == 2 * num_layers
