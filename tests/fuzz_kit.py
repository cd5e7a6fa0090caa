"""Files damaged as they come to be: cut short, bits flipped, values exchanged; and what may be answered to them.

`scripts/fuzz` runs the tests that are built from this for minutes; among the other tests they run for a moment.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from selfspec_tune.errors import SelfSpecError, StorageError

EXAMPLES_VARIABLE = "FUZZ_EXAMPLES"  # how many of each test, where a moment's are not enough
A_FEW = settings(
    max_examples=int(os.environ.get(EXAMPLES_VARIABLE, "12")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
ANSWERS: Counter[str] = Counter()  # by what came out, for `scripts/fuzz`

_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**30, -(10**30), 0.5, -0.5, 1e300, 1e-320),
    *("", "x", "\u0661", "none", "\x1b]0;pwn\x07\u202e", "\ud800", "9" * 5000, "../../etc/passwd", "a\0b"),
    *([], [None], [[]], [-1], [10**9], ["x"], [True], [1.5]),
    *({}, {"": None}, {"attention": "x"}, {"attn": [1], "MLP": []}, {"schema": 5}),
)


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """``content`` with one or two things wrong, in its bytes or, where it is JSON or lines of it, in its values."""
    ways = [_cut(content), _flipped(content), _spliced(content)]
    if values := _json_lines(content):
        ways += [_exchanged(values)] * 3
    return st.one_of(ways)


def may_be_refused(act: Callable[[], object], *named: str) -> None:
    """Run ``act``, which may refuse by an error of ours that names all of ``named``; what else it raises is a bug.

    A `StorageError` is none: nothing here keeps anybody from writing.
    """
    refusal = None
    try:
        act()
    except SelfSpecError as error:
        refusal = error
    if refusal is None:
        ANSWERS["taken"] += 1
        return
    ANSWERS[f"refused: {type(refusal).__name__}"] += 1
    assert not isinstance(refusal, StorageError), refusal
    for name in named:
        assert name in str(refusal), f"{name} is not named: {refusal}"


def may_exit(exit_code: int, output: str) -> None:
    """Count what a command answered, and check it: a message of ours, and nothing that steers a terminal."""
    ANSWERS[f"exit code {exit_code}"] += 1
    assert exit_code in (0, 1, 2), output
    assert "Traceback" not in output
    assert "--debug to see" not in output, output
    assert not any(c in output for c in "\x1b\x07\x9b\u202e"), output


def folder() -> TemporaryDirectory[str]:
    """A folder for one example: pytest's own are kept, thousands of them."""
    return TemporaryDirectory(prefix="fuzz-")


def _cut(content: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(content)).map(lambda end: content[:end])


def _flipped(content: bytes) -> st.SearchStrategy[bytes]:
    def flip(bits: list[int]) -> bytes:
        found = bytearray(content)
        for bit in bits:
            found[bit // 8] ^= 1 << bit % 8
        return bytes(found)

    return st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=3).map(flip)


def _spliced(content: bytes) -> st.SearchStrategy[bytes]:
    bits = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"NaN", b"1e999", b'"', b"[" * 5000, b"{}\n")
    strange = st.sampled_from(bits)
    return st.tuples(st.integers(0, len(content)), st.integers(0, 9), strange | st.binary(max_size=9)).map(
        lambda at: content[: at[0]] + at[2] + content[at[0] + at[1] :]
    )


def _json_lines(content: bytes) -> list[Any] | None:
    """The value of a JSON file, alone, or those of a file of JSON lines; None of anything else."""
    text = content.decode(errors="replace")
    for parts in ([text], text.splitlines()):
        try:
            return [json.loads(part) for part in parts]
        except ValueError:
            continue
    return None


def _exchanged(values: list[Any]) -> st.SearchStrategy[bytes]:
    """One of the values, or a part of one, gone, there under another name, or replaced by something hostile."""
    places = list(_places(values))

    def exchange(drawn: tuple[int, str, Any]) -> bytes:
        place, way, value = drawn
        changed = deepcopy(values)
        part: Any = changed
        *parents, last = places[place]
        for key in parents:
            part = part[key]
        if way == "remove":
            del part[last]
        elif way == "rename" and isinstance(part, dict):
            part[last[::-1] + "_"] = part.pop(last)
        else:
            part[last] = value
        return "\n".join([*map(json.dumps, changed), *[""] * (len(values) > 1)]).encode()

    ways = st.sampled_from(["replace", "replace", "remove", "rename"])
    drawn = st.tuples(st.integers(0, len(places) - 1), ways, st.sampled_from(_HOSTILE))
    return drawn.map(exchange)


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value[:6] if place else value))  # of numbers one is like another, of lines none
    for key, part in inside:
        yield (*place, key)
        yield from _places(part, (*place, key))


def write(path: Path, content: bytes) -> Path:
    """``path`` with this content."""
    path.write_bytes(content)
    return path
