"""From tokens to text as they come: nothing is given that a later token could still change or take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder puts for bytes that are no character yet


class TextStream:
    """The text of tokens, up to the first of the ``stop`` texts.

    ``decode``: the text of some tokens. Only the last few are decoded again for each push, so that a long answer costs
    no more per token than a short one. Held back are bytes that may become a character, and what may be
    the beginning of a stop text.

    >>> stream = TextStream(lambda tokens: bytes(tokens).decode(errors="replace"), stop=["END"])
    >>> stream.push(b"a caf\\xc3"), stream.push(b"\\xa9 E"), stream.push(b"ND b"), stream.stopped_by
    ('', 'a café ', '', 'END')
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []  # those that the text of new ones may depend on
        self._num_read, self._read = 0, ""  # of these whose text has been taken, and that text
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, tokens: Sequence[int]) -> str:
        """The text that is certain now. Nothing more comes after a stop text."""
        if self.stopped_by is not None:
            return ""
        self._tokens += tokens
        text = self._decode(self._tokens)
        if text.endswith(_INCOMPLETE) or len(text) <= len(self._read):
            return ""
        self._held += text[len(self._read) :]
        # The next texts are decoded after these tokens: decoders treat a beginning otherwise than a middle.
        self._tokens = self._tokens[self._num_read :]
        self._num_read, self._read = len(self._tokens), self._decode(self._tokens)
        return self._released()

    def finish(self) -> str:
        """What is still held back when no more tokens come."""
        if self.stopped_by is not None:
            return ""
        self._held += self._decode(self._tokens)[len(self._read) :]
        released = self._released()
        rest = "" if self.stopped_by is not None else self._held
        self._held = ""
        return released + rest

    def _released(self) -> str:
        """What can be given of the text held, which is kept no longer."""
        found = [(place, text) for text in self._stop if (place := self._held.find(text)) >= 0]
        if found:
            place, self.stopped_by = min(found)
            released, self._held = self._held[:place], ""
            return released
        end = len(self._held) - max((_overlap(self._held, text) for text in self._stop), default=0)
        released, self._held = self._held[:end], self._held[end:]
        return released


def _overlap(text: str, stop: str) -> int:
    """With how many characters ``text`` ends that ``stop`` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
