from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from selfspec_tune.draft.skip_set import SkipSet
from selfspec_tune.export.blocks import LayerBlock, partial, surviving_blocks

FLAGS = st.integers(1, 12).flatmap(lambda layers: st.lists(st.booleans(), min_size=2 * layers, max_size=2 * layers))


def test_nothing_skipped_leaves_every_layer() -> None:
    assert surviving_blocks(SkipSet.empty(3)) == [LayerBlock(0, 0), LayerBlock(1, 1), LayerBlock(2, 2)]


def test_an_attention_joins_the_mlp_that_follows_it() -> None:
    # MLP 0 and attention 1 skipped: attention 0 and MLP 1 follow each other.
    assert surviving_blocks(SkipSet(2, (1,), (0,))) == [LayerBlock(0, 1)]


def test_what_cannot_be_joined_is_left_alone() -> None:
    blocks = surviving_blocks(SkipSet(4, (1,), (2,)))
    assert blocks == [LayerBlock(0, 0), LayerBlock(None, 1), LayerBlock(2, None), LayerBlock(3, 3)]
    assert partial(blocks) == [LayerBlock(None, 1), LayerBlock(2, None)]


def test_a_whole_layer_vanishes() -> None:
    assert surviving_blocks(SkipSet(3, (1,), (1,))) == [LayerBlock(0, 0), LayerBlock(2, 2)]
    assert surviving_blocks(SkipSet(1, (0,), (0,))) == []


@given(flags=FLAGS)
def test_blocks_hold_every_surviving_sublayer_once_in_running_order(flags: list[bool]) -> None:
    found = []
    for block in surviving_blocks(SkipSet.from_flags(flags)):
        found += [2 * block.attention] if block.attention is not None else []
        found += [2 * block.mlp + 1] if block.mlp is not None else []
        assert block.attention is not None or block.mlp is not None
    assert found == [index for index, is_skipped in enumerate(flags) if not is_skipped]
