"""A draft of one model carried over to a model of another depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfspec_tune.draft.draft import Draft
from selfspec_tune.draft.precision import DraftPrecision, Precision
from selfspec_tune.skip_set import SkipSet


def rescaled(draft: Draft, num_layers: int) -> Draft:
    """``draft`` for a model of ``num_layers`` layers: each sub-layer as at the same relative depth.

    The first layer stays the first and the last the last; where one of these is kept, it stays kept. Else,
    of attentions and of MLPs, the same share is skipped as before, to the nearest whole number; so a
    draft may come out that skips nothing.
    """
    own = draft.sublayers
    if len(own) == 2 * num_layers:
        return draft
    attention, mlp = (_stretched(own[kind::2], num_layers) for kind in (0, 1))
    sublayers = [precision for pair in zip(attention, mlp, strict=True) for precision in pair]
    head_alone = DraftPrecision(head=draft.precision.head)
    return replace(draft, skip_set=SkipSet.empty(num_layers), precision=head_alone).with_sublayers(sublayers)


def _stretched(choices: Sequence[Precision | None], count: int) -> list[Precision | None]:
    """``choices`` (None: skipped) over ``count`` places instead of their own number."""
    step = (len(choices) - 1) / max(count - 1, 1)
    places = [step * i for i in range(count)]
    num_skipped = round(count * choices.count(None) / len(choices))
    kept = [i for i, precision in enumerate(choices) if precision is not None]
    guarded = {end for end, own in ((0, 0), (count - 1, len(choices) - 1)) if own in kept}
    order = sorted((i for i in range(count) if i not in guarded), key=lambda i: (_outside(choices, places[i]), i))
    skipped = set(order[:num_skipped])
    return [
        None if i in skipped else choices[min(kept, key=lambda j: abs(j - place))] for i, place in enumerate(places)
    ]


def _outside(choices: Sequence[Precision | None], place: float) -> tuple[float, float]:
    """How far ``place``, between two of ``choices``, is from what is skipped: the share of the two kept, then steps."""
    before = int(place)
    after = min(before + 1, len(choices) - 1)
    share = place - before
    kept = (1 - share) * (choices[before] is not None) + share * (choices[after] is not None)
    return kept, min((abs(i - place) for i, precision in enumerate(choices) if precision is None), default=0.0)
