"""What a lookup would find at every position of known text, for replaying."""

from __future__ import annotations

from selfspec_tune.draft import NgramLookup
from selfspec_tune.engine.ngram import NgramIndex, common_prefix
from selfspec_tune.engine.teacher_forcing import Window
from selfspec_tune.search.replay import LookedUp


def look_up(window: Window, ngram: NgramLookup) -> list[LookedUp]:
    """At each position of ``window``, from all the text before it."""
    index = NgramIndex(ngram, window.tokens[: window.start])
    found = []
    for position in range(window.start, window.end):
        index.extend(window.tokens[position : position + 1])
        here = index.find()
        num_right = common_prefix(here.tokens, window.tokens[position + 1 : window.end + 1])
        found.append(LookedUp(len(here.tokens), here.match_length, num_right))
    return found
