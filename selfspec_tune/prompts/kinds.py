"""Kinds of rows that a file's text may hold: told by its content, separated or JSON, and read as what they are."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from typing import Any

from selfspec_tune.errors import PromptError
from selfspec_tune.prompts.columns import (
    CHAT_COLUMNS,
    ID_COLUMNS,
    SYSTEM_COLUMNS,
    TASK_COLUMNS,
    TEXT_COLUMNS,
    TURNS,
    Row,
    is_named,
    several_texts,
)
from selfspec_tune.prompts.prompt import is_conversation, is_list

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
STATED = re.compile(r'"?sep=(?P<separator>.)"?\n')  # Excel's first line
_AROUND_ROWS = ("data", "rows", "prompts", "examples", "questions", "instances", "items")
_PROMPT_COLUMNS = frozenset({*TEXT_COLUMNS, *CHAT_COLUMNS})
_BESIDE = ("input", "context", "passage", "history", "options", "choices", "answer", "response", "output")
_KNOWN_COLUMNS = _PROMPT_COLUMNS | {*ID_COLUMNS, *TASK_COLUMNS, *SYSTEM_COLUMNS, *_BESIDE}
# How a list or an object begins, also one of Python's; a prompt may begin with [INST], {{user}} or [ ].
_BEGUN = re.compile(r"\s*(\[\s*([{\"']|\n)|\{\s*([\"']|\n))")
_ENTRY = re.compile(r'\s*".*",\s*')  # of a list whose brackets were left out
_COLUMN = re.compile(r"\s?\w[\w.()/-]*( [\w.()/-]+){0,2}\s?")  # what may be a column's name: a few words
_RULE = re.compile(r"(?=.*-)(?=.*[|+])[\s|+:=-]{3,}")  # drawn below a table's header, or above it
AS_LINES = 'Where every line is a prompt all the same, write them as JSON lines, such as {"prompt": "…"}.'


def read_separated(text: str, usual: str, *, where: str) -> list[Row]:
    """The rows below a header line, as column → text; an empty field is an empty text, and "NA" is "NA".

    The separator is the one of `SEPARATORS` that divides the header; ``usual`` where several do and suit every row.
    Raises `PromptError` naming the line where a row has more or fewer fields than the header.
    """
    stated = STATED.match(text)
    skipped = 1 if stated else 0
    if stated:
        text = text[stated.end() :]
    with _long_fields(len(text)):
        separator = stated["separator"] if stated else _separator(text, usual, where)
        records = _records(text, separator, where, skipped)
        _, header = next(records, (0, []))
        columns = [name.strip() for name in header]
        repeated = {name for name in columns if name and columns.count(name) > 1}
        if repeated:
            raise PromptError(f"{where} has several columns {sorted(repeated)[0]!r}; give each a name of its own.")
        rows: list[Row] = []
        for line, fields in records:
            if len(fields) != len(columns):
                raise PromptError(
                    f"{where}, line {line}: expected {_counted(len(columns))}, as the header has by "
                    f"{SEPARATORS.get(separator, repr(separator))}; found {len(fields)}. Put a text that holds "
                    'separators or line ends in double quotes ("), or give one prompt a line as .txt, or JSON lines.'
                )
            rows.append(dict(zip(columns, fields, strict=True)))
    return rows


def header_of(text: str, separator: str) -> list[str]:
    """The fields of the first record by ``separator``; none where it cannot be read."""
    try:
        _, header = next(_records(text, separator, "", 0), (0, []))
    except PromptError:
        return []
    return header


def is_even(text: str, separator: str) -> bool:
    """Whether all records have as many fields by ``separator``."""
    try:
        with _long_fields(len(text)):
            return len({len(fields) for _, fields in _records(text, separator, "", 0)}) == 1
    except PromptError:
        return False


def _separator(text: str, usual: str, where: str) -> str:
    dividing = [separator for separator in SEPARATORS if len(header_of(text, separator)) > 1]
    if len(dividing) <= 1:
        return dividing[0] if dividing else usual
    suiting = [separator for separator in dividing if is_even(text, separator)]
    if usual in (suiting or dividing):
        return usual
    if len(suiting) == 1:
        return suiting[0]
    found = " or ".join(SEPARATORS[separator] for separator in dividing)
    raise PromptError(f"{where} may be separated by {found}; write it with commas, or as JSON lines.")


def _records(text: str, separator: str, where: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Each record that is no blank line, with the number of the line on which it begins."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1 + skipped
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise PromptError(
                f'{where}, line {line}: {error}. A double quote within a quoted field is written twice ("").'
            ) from error
        if fields is None:
            return
        if fields:
            yield line, fields


def _counted(number: int) -> str:
    return "1 field" if number == 1 else f"{number} fields"


@contextmanager
def _long_fields(num_characters: int) -> Iterator[None]:
    """Fields as long as the whole text may be read, which the csv module forbids by default."""
    before = csv.field_size_limit(max(num_characters, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def rows_within(value: Any, where: str) -> list[Any]:
    """The rows that ``value`` holds, each a value of its own.

    Raises `PromptError` where several keys may hold them, and where columns differ in length.
    """
    if is_list(value) and not is_conversation(value):
        return list(value)
    if not isinstance(value, Mapping):
        return [value]
    if any(is_named(key, (*TEXT_COLUMNS, *CHAT_COLUMNS)) for key in value):
        return _of_columns(value, where) if any(_holds_prompts(*entry) for entry in value.items()) else [value]
    around = [key for key in value if is_named(key, _AROUND_ROWS) and is_list(value[key])]
    if len(around) > 1:
        raise PromptError(f"{where}: several keys could hold the prompts ({', '.join(around)}); keep one of them.")
    lists = [key for key in value if is_list(value[key])]
    alone = around or (lists if len(value) == 1 else [])
    if alone:
        return [value] if is_conversation(value[alone[0]]) else list(value[alone[0]])
    return _of_columns(value, where) if lists == list(value) else [value]


def _holds_prompts(key: str, value: Any) -> bool:
    """Whether it is a column of prompts: several texts, other than a user's turns, or a list of conversations."""
    if is_named(key, CHAT_COLUMNS):
        return is_list(value) and bool(value) and is_conversation(value[0])
    is_several = several_texts(value) or (is_list(value) and bool(value) and is_conversation(value[0]))
    return is_named(key, TEXT_COLUMNS) and not is_named(key, (TURNS,)) and is_several


def _of_columns(value: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A row of each place of the columns, as of a data frame; what is no list is the same in every row."""
    lengths = {key: len(column) for key, column in value.items() if is_list(column) and not is_conversation(column)}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise PromptError(
            f"{where} is one object whose lists differ in length ({found:.300}); expected a value for each prompt in "
            "each. Write a row for each prompt, as JSON lines."
        )
    rows = range(next(iter(lengths.values()), 0))
    return [{key: column[row] if key in lengths else column for key, column in value.items()} for row in rows]


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
    separator = _table_separator(text, lines)
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


def _table_separator(text: str, lines: list[str]) -> str | None:
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
