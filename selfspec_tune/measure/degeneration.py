"""Answers that degenerate: the same token or phrase over and over, until a limit ends them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

_FEWEST_CYCLES = 3
_LEAST_SHARE = 1 / 3  # of the answer
_SHORTEST, _SHORTEST_ENDED = 12, 64  # tokens of a loop: where the limit cut it, where the model ended it
_LEAST_COPY, _LEAST_OF_TURN, _LEAST_COPIED = 20, 0.85, 0.55
_GRAM, _LEAST_GRAMS, _MOST_TOKENS, _LEAST_DISTINCT = 6, 24, 256, 0.25


def judge(tokens: Sequence[Hashable], *, ended: bool) -> bool | None:
    """`is_degenerate`, or None for an answer of fewer than 12 tokens: it is too short to tell."""
    return None if len(tokens) - ended < _SHORTEST else is_degenerate(tokens, ended=ended)


def of_both(plain: bool | None, other: bool | None) -> bool | None:
    """What `judge` says of an answer that two arms gave: degenerate where either is, else too short where either is."""
    return True if plain or other else None if plain is None or other is None else False


def is_degenerate(tokens: Sequence[Hashable], *, ended: bool) -> bool:
    """Whether an answer degenerates; ``ended``: by an end of sequence, which is no part of a loop.

    ``tokens`` are texts, or ids of which nobody knows what they say. One of three signs is enough:

    - It ends in a loop: one period at least three times, over a third of the answer and 12 tokens at least. Of an
      answer that the model ended itself, 64 tokens: people ask for short repetitions, and for tables.
    - The limit cut it while it said again what it had just said: 55 % of it, or of its second half, are copies, and
      some of its last 20 tokens. A copy has 20 tokens or more, the very same that stand one turn before, and at least
      85 % of that turn; what lies between copies is a counter (a text with a digit, or any id) or was said before. So
      an answer that is one loop is found from 2.3 turns on, however long they are, and one sentence under ever new
      numbers. Near-equal objects, rows and assertions differ each turn in a name, or in several places, and no copy of
      theirs is nearly a turn.
    - The limit cut it, and of the 6-grams of its last 256 tokens, or of the second half of these, a quarter or less
      are distinct: a few tokens in varying order. A text with one new token a turn has more.

    Of 321 published answers these find 16, all loops (8 of them by the first sign); of the others, cut by the limit,
    none has more than 53 % of copies. They cannot tell objects that differ in one number alone, 20 equal tokens
    apart, from a counted loop, nor a refrain that the limit cut, nor long lists of zeros and ones. They do not see a
    loop before its second turn is told, one that says a new word each turn, or the same in other words.
    """
    text = tokens[:-1] if ended else tokens
    shortest = max(_SHORTEST_ENDED if ended else _SHORTEST, _LEAST_SHARE * len(text))
    if longest_loop(text) >= shortest:
        return True
    if ended:
        return False
    copied, last = _copied(text), text[-_MOST_TOKENS:]
    is_copying = any(copied[-_LEAST_COPY:]) and (_is_most(copied) or _is_most(copied[len(copied) // 2 :]))
    return is_copying or _is_monotonous(last) or _is_monotonous(last[len(last) // 2 :])


def _is_most(copied: Sequence[bool]) -> bool:
    return sum(copied) >= _LEAST_COPIED * len(copied)


def _copied(tokens: Sequence[Hashable]) -> list[bool]:
    """Of each token, whether it is in a copy of what stands one turn before."""
    copied = [False] * len(tokens)
    for turn in range(1, len(tokens)):
        least = max(_LEAST_COPY, round(_LEAST_OF_TURN * turn))
        place = turn + least - 1  # a copy of so many tokens or more holds one of the places that are looked at
        while place < len(tokens):
            start, end = _equal_around(tokens, turn, place)
            if end - start >= least and not _is_news(tokens, end - turn, start):
                copied[start:end] = [True] * (end - start)
            place = max(place, end) + least
    return copied


def _equal_around(tokens: Sequence[Hashable], turn: int, place: int) -> tuple[int, int]:
    """The tokens around ``place`` that equal those a ``turn`` before, as a range; an empty one where it differs."""
    start = end = place
    while end < len(tokens) and tokens[end] == tokens[end - turn]:
        end += 1
    while end > place and start > turn and tokens[start - 1] == tokens[start - 1 - turn]:
        start -= 1
    return start, end


def _is_news(tokens: Sequence[Hashable], start: int, end: int) -> bool:
    """Whether any of the tokens from ``start`` to ``end`` was not said before, and is surely no counter's."""
    texts = {token for token in tokens[start:end] if isinstance(token, str) and not any(map(str.isdigit, token))}
    return not texts <= set(tokens[:start])


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
