"""What may reach a terminal: text of others' making must not steer it.

A name in a file may hold escape sequences, which recolour, overwrite or retitle a terminal, or marks that
turn the order of letters around. They are shown as what they are instead, ``\\u001b``, in the same way as JSON writes
them, so JSON stays JSON.
"""

from __future__ import annotations

import re

# The control characters of C0 (but tab and newline), DEL and C1, what overrides or isolates a writing direction, and
# bytes of file names that are no text.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with every character that steers a terminal written out; others, tab and newline too, as they are."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def visible_line(text: str) -> str:
    """The same on a single line: a newline in a name must not begin a line that seems to be the program's own."""
    return visible(text).replace("\n", "\\n")
