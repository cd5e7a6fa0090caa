"""What encoding the bytes of a text are in, where they tell it though no byte-order mark does."""

from __future__ import annotations

_ENOUGH = 4096  # bytes that are looked at; a multiple of every character's width
_FEWEST = 1 / 16  # of a text's characters, those that ASCII has too: spaces, line ends, what JSON is written with


def wide_encoding(data: bytes) -> str | None:
    """``UTF-16LE``, ``UTF-16BE``, ``UTF-32LE`` or ``UTF-32BE`` of text that is so encoded; None of any other.

    The NUL bytes tell it: they are the upper bytes of characters, and so stand in every second place.
    """
    beginning = data[:_ENOUGH]
    nuls = [beginning[place::4].count(0) for place in range(4)]
    fours, pairs = len(beginning) // 4, len(beginning) // 2
    if fours and not len(data) % 4:
        if nuls[2] == nuls[3] == fours:
            return "UTF-32LE"
        if nuls[0] == nuls[1] == fours:
            return "UTF-32BE"
    even, odd = nuls[0] + nuls[2], nuls[1] + nuls[3]
    if pairs and not len(data) % 2 and max(even, odd) >= max(_FEWEST * pairs, min(pairs, 2)):
        if odd > 3 * even:
            return "UTF-16LE"
        if even > 3 * odd:
            return "UTF-16BE"
    return None


def how_to_convert(encoding: str) -> str:
    """What makes UTF-8 of a file in ``encoding``."""
    return f"`iconv -f {encoding} -t UTF-8 FILE > NEW-FILE`"
