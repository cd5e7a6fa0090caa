"""Answers that degenerate: the same token or phrase over and over, until a limit ends them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

_FEWEST_CYCLES = 3
_LEAST_SHARE = 1 / 3  # of the answer
_SHORTEST, _SHORTEST_ENDED = 12, 64  # tokens of a loop: where the limit cut it, where the model ended it
_GRAM, _LEAST_GRAMS, _MOST_TOKENS, _LEAST_DISTINCT = 6, 24, 256, 0.5


def is_degenerate(tokens: Sequence[Hashable], *, ended: bool) -> bool:
    """Whether an answer degenerates; ``ended``: by an end of sequence, which is no part of a loop.

    One of two signs is enough:

    - It ends in a loop: one period at least three times, over a third of the answer and 12 tokens at least. Of an
      answer that the model ended itself, 64 tokens: people ask for short repetitions, and for tables.
    - The limit cut it, and of the 6-grams of all of it (256 tokens at most), or of its second half, half or less are
      distinct: a loop whose period is long or varies. Of 321 published answers, code with its examples, dialogue and
      recipes have 0.57 and more, lists of numbers and tables 0.75; what has less goes in circles. A short phrase
      with a counter in it has more, and is none.
    """
    text = tokens[:-1] if ended else tokens
    shortest = max(_SHORTEST_ENDED if ended else _SHORTEST, _LEAST_SHARE * len(text))
    if longest_loop(text) >= shortest:
        return True
    last = text[-_MOST_TOKENS:]
    return not ended and (_is_monotonous(last) or _is_monotonous(last[len(last) // 2 :]))


def _is_monotonous(tokens: Sequence[Hashable]) -> bool:
    grams = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return len(grams) >= _LEAST_GRAMS and len(set(grams)) <= _LEAST_DISTINCT * len(grams)


def longest_loop(tokens: Sequence[Hashable]) -> int:
    """The number of tokens at the end that repeat with one period, three times or more; 0 where none do."""
    longest = 0
    for period in range(1, len(tokens) // _FEWEST_CYCLES + 1):
        length = period
        while length < len(tokens) and tokens[-1 - length] == tokens[-1 - length + period]:
            length += 1
        if length >= _FEWEST_CYCLES * period:
            longest = max(longest, length)
    return longest
