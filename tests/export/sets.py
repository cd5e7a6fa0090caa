"""Skip sets of four layers that leave single sub-layers of layers."""

from __future__ import annotations

from selfspec_tune.draft.skip_set import SkipSet

SINGLE = {
    "an attention": SkipSet(4, (2,)),
    "an MLP": SkipSet(4, (), (1,)),
    "the first attention": SkipSet(4, (0,)),
    "the first MLP": SkipSet(4, (), (0,)),
    "the last attention": SkipSet(4, (3,)),
    "the last MLP": SkipSet(4, (), (3,)),
    "some": SkipSet(4, (0, 3), (1,)),
    "all attentions but one": SkipSet(4, (0, 1, 3)),
}
