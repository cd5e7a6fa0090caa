"""What kind of rows a text holds, told by its content: a suffix only says what it was saved as."""

from __future__ import annotations

import json
import re
from typing import Any

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.columns import CHAT_COLUMNS, ID_COLUMNS, SYSTEM_COLUMNS, TASK_COLUMNS, TEXT_COLUMNS
from selfspec_tune.prompts.separated import SEPARATORS, STATED, header_of, is_even

_PROMPT_COLUMNS = frozenset({*TEXT_COLUMNS, *CHAT_COLUMNS})
_BESIDE = ("input", "context", "passage", "history", "options", "choices", "answer", "response", "output")
_KNOWN_COLUMNS = _PROMPT_COLUMNS | {*ID_COLUMNS, *TASK_COLUMNS, *SYSTEM_COLUMNS, *_BESIDE}
# How a list or an object begins, also one of Python's; a prompt may begin with [INST], {{user}} or [ ].
_BEGUN = re.compile(r"\s*(\[\s*([{\"']|\n)|\{\s*([\"']|\n))")
_ENTRY = re.compile(r'\s*".*",\s*')  # of a list whose brackets were left out
_COLUMN = re.compile(r"\s?\w[\w.()/-]*( [\w.()/-]+){0,2}\s?")  # what may be a column's name: a few words
_RULE = re.compile(r"(?=.*-)(?=.*[|+])[\s|+:=-]{3,}")  # drawn below a table's header, or above it
AS_LINES = 'Where every line is a prompt all the same, write them as JSON lines, such as {"prompt": "…"}.'


def kind_of(text: str, kind: str, *, column: str | None, where: str) -> str:
    """``json``, ``csv`` or ``text``: how a file of the named ``kind`` is to be read.

    JSON, or what begins as JSON, is that whatever its suffix. Lines of text are rows of a table where the first names
    columns, one of which is known to be the prompt or was asked for. Raises `PromptError` where they may be such rows
    and none is known: line by line, other prompts than those meant would be measured.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if kind == "json" or not lines:
        return kind
    if kind == "csv":
        return "json" if _are_values(lines, dict) or _value(text, dict, list) else kind
    if lines[0].strip(' "').lower() in _PROMPT_COLUMNS:
        raise PromptError(
            f"{where} begins with the line {lines[0].strip()}, the name of a column: take it away, where the other "
            "lines are the prompts, or give the file the suffix .csv."
        )
    if _are_values(lines, dict, list, str) or _value(text, dict, list) or _is_begun(text, lines):
        return "json"
    is_ruled = any(_RULE.fullmatch(line) for line in lines[:2])
    if len(lines) > 1 and (is_ruled or all(re.fullmatch(r"\s*\|.*\|\s*", line) for line in lines)):
        raise PromptError(f"{where} holds a table as Markdown has it: write it as .csv. {AS_LINES}")
    if STATED.match(text):
        return "csv"
    separator = _separator(text, lines)
    if separator is None:
        return kind
    names = [name.strip().lower() for name in header_of(text, separator)]
    if column is None and _PROMPT_COLUMNS.isdisjoint(names):
        raise PromptError(
            f"{where} may be a table, separated by {SEPARATORS[separator]}, and no column is known to be the prompt "
            f"({', '.join(names):.300}). Name it as {where}#COLUMN. {AS_LINES}"
        )
    return "csv"


def _are_values(lines: list[str], *kinds: type) -> bool:
    return all(_value(line, *kinds) for line in lines)


def _value(text: str, *kinds: type) -> bool:
    """Whether the text is one JSON value of these kinds."""
    if text.lstrip()[:1] not in ("{", "[", '"'):  # nor is any other worth the time
        return False
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, kinds)


def _is_begun(text: str, lines: list[str]) -> bool:
    """Whether a text is JSON that was cut out, cut short or damaged."""
    if 2 * sum(_value(line, dict, list) for line in lines) > len(lines):
        return True
    if len(lines) > 1 and all(_ENTRY.fullmatch(line) for line in lines[:-1]):
        return True
    return _BEGUN.match(text) is not None and not _is_about_value(lines[0])


def _is_about_value(line: str) -> bool:
    """Whether words follow on a whole value, as in a prompt about a piece of JSON."""
    begun = line.lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(begun)
    except (ValueError, RecursionError):
        return False
    following = begun[end:].lstrip(" \t,;]}")
    return bool(following) and following[0] not in '{["'


def _separator(text: str, lines: list[str]) -> str | None:
    """What separates the fields of lines that are a table's; None of lines of text."""
    for separator in sorted(SEPARATORS, key="\t".__ne__):
        names = header_of(text, separator)
        if len(names) < 2:
            continue
        known = _KNOWN_COLUMNS.intersection(name.strip().lower() for name in names)
        is_header = all(_COLUMN.fullmatch(name) for name in names)
        if len(lines) > 1 and _divides_all(text, lines, separator):
            is_tight = separator not in ",;" or len(names) > 2 or f"{separator} " not in lines[0]
            if separator == "\t" or (is_header and (known or is_tight)):
                return separator
        if is_header and known & _PROMPT_COLUMNS and f"{separator} " not in lines[0]:
            return separator  # the row that does not fit is named as it is read
    return None


def _divides_all(text: str, lines: list[str], separator: str) -> bool:
    """Whether it divides all lines alike; a tab need not, since in a line of text there is hardly one.

    Tabs that only indent divide nothing.
    """
    is_alike = is_even(text, separator) or len({line.count(separator) for line in lines}) == 1
    dividing = [separator in line.strip() for line in lines]
    return (is_alike and any(dividing)) or (separator == "\t" and all(dividing))
